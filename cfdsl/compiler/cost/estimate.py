"""How long a launch takes on a part: its bytes over measured rates, plus the pauses that the ring does not cover.

time = start + stream + exchanges + tail, in microseconds, where

    stream      memory, L2 and the busiest SM each need a time for their bytes; the slowest decides, wave after wave of clusters
    exchanges   during a pause the ring keeps filling: a pause costs what it lasts beyond the bytes that the ring can still take
    start       until the launch streams: under PDL its CTAs take the place of the launch before's, one by one, and their rings fill
                while the inputs are read and normalised
    tail        the last sum and store, and the wait for the slowest CTA
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp

from cfdsl.compiler.config import Config
from cfdsl.compiler.cost.moves import Pause, Traffic
from cfdsl.compiler.parts import Part

SHARPNESS = 6  # two limits a, b give (a^6 + b^6)^(1/6): 1 % above the larger at 3 : 2, and 12 % where they meet


@dataclass(frozen=True)
class Estimate:
    """Microseconds, unless a name says otherwise. `hbm_us`, `l2_us` and `sm_us` are the limits behind `stream_us`."""

    time_us: float
    start_us: float
    stream_us: float
    exchanges_us: float
    tail_us: float
    hbm_us: float
    l2_us: float
    sm_us: float
    cover_us: float
    waves: int
    ctas_on_busiest_sm: int
    traffic: Traffic


def flight_share(part: Part, nbytes: float) -> float:
    """The share of the memory's rate that `nbytes` in flight reach, over the whole part: 1 - exp(-bytes / (rate x flight_us))."""
    return 1 - exp(-nbytes / (part.hbm_gbps * 1000 * part.timing.flight_us))


def waves_of(clusters: int, resident: int | None) -> int:
    """How many times over the part is filled. Unknown residency counts as one wave."""
    return ceil(clusters / resident) if resident else 1


def ctas_on_busiest_sm(part: Part, config: Config, clusters: int | None = None) -> int:
    """CTAs that share the SM with the most of them when so many clusters (default: all) run at once.

    Clusters of 4 fill an H100 after 30, the 31st doubles up. Where residency is unknown: as if every SM could be used.
    """
    alone = part.resident(config.cluster_size, 1) or max(1, part.sms // config.cluster_size)
    return min(config.ctas_per_sm, ceil((clusters or config.clusters) / alone))


def pause_us(part: Part, pause: Pause, mesh_ctas: int, ranks: int) -> float:
    """How long consumers eat nothing, if all CTAs arrive together."""
    timing = part.timing
    if pause.kind == "block":
        return timing.block_phase_us * pause.heads
    if pause.kind == "round":
        return timing.global_round_us
    if pause.kind == "cluster":
        if ranks == 1:
            return 0.0
        return part.cycles_us(timing.st_async_cycles + pause.payload / timing.push_bytes_per_clk)
    if pause.kind == "multicast":
        return part.cycles_us(timing.st_async_cycles) if ranks > 1 and timing.multicast_us is None else 0.0
    if mesh_ctas == 1:
        return 0.0
    return timing.skew_us + timing.grid_barrier_us + timing.global_round_us + part.at_sm_us(pause.payload)


def pauses_us(part: Part, traffic: Traffic) -> tuple[tuple[float, int], ...]:
    """Pauses between streams as (microseconds, bytes the CTA still has to stream after it); the one before the first stream leads.

    Pauses that follow each other without a stream between them add up; those after the last stream belong to the tail.
    """
    mesh, open_us = traffic.mesh, 0.0
    found: list[tuple[float, int]] = []
    left = sum(load.cta for load in traffic.loads if load.streamed)
    for event in traffic.events:
        if isinstance(event, Pause):
            open_us += pause_us(part, event, mesh.ctas, mesh.ranks)
        elif event.streamed:
            # Products of one input follow each other without a pause: only the last one's sum is waited for.
            if open_us or not found:
                found.append((open_us, left))
            open_us, left = 0.0, left - event.cta
    return (*found, (open_us, 0))


def stream_us(part: Part, config: Config, traffic: Traffic, share: float = 1.0) -> tuple[float, float, float, float]:
    """(stream, memory, L2, busiest SM) for all waves, if `share` of the memory's rate is reached.

    Clusters are taken to be equal, so a wave has its part of the bytes; a last wave of few clusters is held up by their SMs.
    """
    resident = part.resident(config.cluster_size, config.ctas_per_sm)
    memory, l2 = part.at_hbm_us(traffic.unique_bytes) / share, traffic.l2_bytes / (part.l2_gbps * 1000)
    total, sms, left = 0.0, 0.0, config.clusters
    while left:
        now = min(left, resident or left)
        shared = ctas_on_busiest_sm(part, config, now)
        sm = shared * part.at_sm_us(traffic.cta_bytes, traffic.repeated_bytes, config.cluster_size, now * config.cluster_size // shared)
        total += max(_both(memory * now / config.clusters, sm), l2 * now / config.clusters)
        sms, left = sms + sm, left - now
    return total, memory, l2, sms


def _both(a: float, b: float) -> float:
    """Two limits at once: a little more than the larger."""
    return float((a**SHARPNESS + b**SHARPNESS) ** (1 / SHARPNESS))


def start_us(part: Part, config: Config, first: float, streams: bool) -> float:
    """Until a launch in a row of launches streams; without PDL, or a ring, also what the launch itself and its inputs (`first`) take."""
    timing = part.timing
    if not streams:
        return first + (timing.launch_pdl_us if config.pdl else timing.launch_us)
    alone = 0.0 if config.pdl else timing.launch_us + max(timing.latency_us, first)
    crowded = timing.beside_us if config.ctas_per_sm > 1 else 0.0
    return alone + timing.start_us + crowded + dict(timing.wide_start_us).get(config.cluster_size, 0.0)


def estimate(part: Part, config: Config, traffic: Traffic) -> Estimate:
    """Predict one launch in a row of launches, with weights and cache not in the L2."""
    timing = part.timing
    ring = config.stages * config.stage_bytes if traffic.streams else 0
    resident = part.resident(config.cluster_size, config.ctas_per_sm)
    in_flight = ring * config.cluster_size * min(config.clusters, resident or config.clusters)
    share = flight_share(part, in_flight) if traffic.streams else 1.0
    stream, memory, l2, sm = stream_us(part, config, traffic, share)
    us_per_byte = stream / max(1, traffic.cta_bytes * traffic.mesh.ctas)
    cover = in_flight * us_per_byte * timing.cover_share

    def uncovered(pause: float, left: int) -> float:
        """A pause ends with a first request that takes its time; until then the ring, or what is left to stream, fills."""
        return max(0.0, pause + timing.latency_us - min(cover, left * traffic.mesh.ctas * us_per_byte)) if ring else pause

    (first, _), *between, (last, _) = pauses_us(part, traffic) if traffic.streams else _unstreamed(part, traffic)
    start = start_us(part, config, first, bool(ring))
    if traffic.mesh.ranks > 1 and Pause("multicast", "inputs") in traffic.events:
        start += timing.multicast_us or 0.0  # measured over whole launches, so nothing covers it
    waves = waves_of(config.clusters, resident)
    costs = sum(uncovered(pause, left) for pause, left in between if pause)
    costs += timing.split_us if config.splits > 1 else 0.0
    exchanges = costs + (waves - 1) * (timing.latency_us + first)  # a wave of clusters starts with empty rings
    tail = last + timing.block_phase_us + (timing.tail_skew_us if ring and traffic.mesh.ctas > 1 else 0.0)
    return Estimate(
        start + stream + exchanges + tail, start, stream, exchanges, tail, memory, l2, sm, cover, waves,
        ctas_on_busiest_sm(part, config), traffic,
    )  # fmt: skip


def _unstreamed(part: Part, traffic: Traffic) -> tuple[tuple[float, int], ...]:
    """Without a ring nothing goes on during a pause: all of them count as exchanges, but for the first round of inputs."""
    pauses = [pause_us(part, event, traffic.mesh.ctas, traffic.mesh.ranks) for event in traffic.events if isinstance(event, Pause)]
    return ((pauses[0] if pauses else 0.0, 0), (sum(pauses[1:]), 0), (0.0, 0))
