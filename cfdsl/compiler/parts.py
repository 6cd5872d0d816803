"""The GPU parts that kernels are planned for: sizes, rates, latencies, and how many clusters each holds at once.

A number without a device to ask is a fact with a source, or absent: `resident` answers None where nobody has measured how clusters of
a size pack into a part, and plans that rest on it are refused until a device is asked (`from_device(..., resident=...)`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cfdsl.errors import UnknownPart

Residency = Mapping[int, Mapping[int, int]]  # CTAs per SM -> cluster size -> clusters that run at once


@dataclass(frozen=True)
class Timing:
    """Latencies and rates inside a part. Defaults: one H100 80GB HBM3, this project's own experiments, recorded 2026-11."""

    launch_us: float = 1.0  # measured: from a launch with clusters to the next, empty kernels in a CUDA graph
    launch_pdl_us: float = 0.6  # measured: the same with programmatic dependent launch
    grid_barrier_us: float = 1.09  # measured: 132 CTAs, red.release + ld.acquire polling
    st_async_cycles: int = 240  # measured: st.async to a peer until its transaction barrier flips, one way
    push_bytes_per_clk: float = 16.0  # measured: 16 to 19 per SM, st.async to peers
    # Fitted together, with what is said to be so above, to the rows of one run of `bench collectives` on one H100 80GB HBM3, 2026-11-28:
    # their cycles inside a kernel are met to 12 % (root mean square).
    round_cycles: int = 70  # of an exchange's round, what is not the way: barrier, first loads, seeing the barrier flip
    bulk_cycles: int = 260  # a bulk copy to a peer, one way
    bulk_bytes_per_clk: float = 16.3  # per SM, bulk copies to peers
    fold_bytes_per_clk: float = 124.0  # what a CTA's threads combine from shared memory, whose width is 128
    multicast_cycles: int = 335  # a multicast from the L2 until all of it has landed on every rank
    multicast_bytes_per_clk: float = 38.8  # of what lands on an SM
    meet_cycles: int = 2000  # a cluster's ranks store to device memory, meet at a barrier there, and load what the others stored
    meet_bytes_per_clk: float = 45.7  # per SM, of what it stores and loads so
    # Fitted to 64 CTAs, one per SM, with 128 KB or more in flight each: 3.05 of an H100's 3.15 TB/s, and 3.87 of an H200's 4.56.
    sm_bytes_per_clk: float = 37.0
    port_bytes_per_clk: float = 64.0  # width of an SM's L2 port: what one SM takes in while the others leave the memory alone
    # The same, as shares of it, for what neighbours have brought into the L2 already (fitted to the attention block of Llama-2-7B and
    # Llama-3.1-8B on an H200, 2026-11), and for SMs in wide clusters, whose ranks wait for each other; sizes that are not listed: 1.
    repeat_share: float = 1.3
    wide_cluster_share: tuple[tuple[int, float], ...] = ((8, 0.98), (16, 0.79))
    # Fitted to 32 KB in flight on each of 132 SMs: 3.0 of 3.15 TB/s, where 48 KB is enough. See `estimate.flight_share`.
    flight_us: float = 0.44
    # Fitted together, with what is said to be so above, to the kernels in tests/compiler/measured.py: they are met to 5 % on average.
    latency_us: float = 0.4  # from a pause's end until the first stage that was asked for in it has landed
    block_phase_us: float = 0.13  # a sum over a CTA's warps through shared memory: two barriers and a pass over the terms
    global_round_us: float = 0.8  # reading what another SM has just written
    skew_us: float = 1.3  # from the first CTA to reach a grid barrier to the last
    tail_skew_us: float = 0.6  # the same at the end of a launch, beyond what the next one's first CTAs do meanwhile
    start_us: float = 0.3  # from the end of a launch until its successor, started by PDL, streams at full rate
    beside_us: float = 0.3  # more, where two CTAs share an SM: they do not spread evenly over the SMs
    wide_start_us: tuple[tuple[int, float], ...] = ((16, 0.7),)  # more, by cluster size: so many SMs must be free at once
    split_us: float = 1.2  # combining the softmax terms of clusters that share a head
    cover_share: float = 0.57  # of the ring that a pause can fill: it is not empty at first, and what is for later comes slower
    # How much longer a launch takes (below 0: shorter) if the inputs that a cluster shares come by multicast, with the same ring. Measured
    # on an H200, 2026-11-23, Llama-2-7B attention block, qkv="rows", 32 clusters of 4, ring of 5, twice each: 43.7 and 43.2 us without,
    # 42.8 and 42.6 with, at 1024 tokens; 57.1 and 55.8 without, 55.8 and 56.3 with, at 4096. That is within the spread of one
    # config, and the landing places cost a ring stage: so None, and multicast is used only where it is asked for.
    multicast_us: float | None = None


@dataclass(frozen=True)
class Part:
    """One GPU part.

    arch                     target of the toolchain
    sms                      streaming multiprocessors
    smem_per_cta             most shared memory that one CTA may have, bytes
    smem_per_sm              shared memory of an SM, bytes; each resident CTA also takes `reserved_smem_per_cta` of it
    hbm_gbps                 achievable read rate of device memory, GB/s: the ceiling, below the data sheet's number
    l2_bytes, l2_gbps        size and read rate of the L2
    clock_ghz                SM clock under load
    cluster_limit            largest cluster; above 8 a kernel must opt in
    max_clusters             clusters that run at once, by CTAs per SM and cluster size; sizes that nobody has measured are absent
    notes                    what of this is not measured, for people who read an estimate
    """

    name: str
    arch: str
    sms: int
    smem_per_cta: int
    smem_per_sm: int
    hbm_gbps: float
    l2_bytes: int
    l2_gbps: float
    clock_ghz: float
    cluster_limit: int
    max_clusters: Residency = field(hash=False)
    timing: Timing = Timing()
    reserved_smem_per_cta: int = 1024  # CUDA programming guide, compute capabilities 8.x to 12.x
    notes: tuple[str, ...] = ()

    def resident(self, cluster_size: int, ctas_per_sm: int = 1) -> int | None:
        """How many clusters run at once when `ctas_per_sm` CTAs fit on an SM; None where that is not known.

        A cluster of 1 needs no table: any SM will do. Sizes above the part's limit have no place at all: 0.
        """
        if cluster_size > self.cluster_limit:
            return 0
        known = self.max_clusters.get(ctas_per_sm, {}).get(cluster_size)
        return self.sms * ctas_per_sm if known is None and cluster_size == 1 else known

    def smem_budget(self, ctas_per_sm: int = 1) -> int:
        """Bytes of shared memory that a CTA may use if `ctas_per_sm` of them share an SM."""
        return min(self.smem_per_cta, self.smem_per_sm // ctas_per_sm - self.reserved_smem_per_cta)

    def cycles_us(self, cycles: float) -> float:
        """SM clock cycles in microseconds."""
        return cycles / (self.clock_ghz * 1000)

    def at_hbm_us(self, nbytes: float) -> float:
        """Microseconds that the memory needs for so many bytes."""
        return nbytes / (self.hbm_gbps * 1000)

    def at_sm_us(self, nbytes: float, repeated: float = 0.0, cluster_size: int = 1, sms: int | None = None) -> float:
        """Microseconds that one SM needs to take in so many bytes, `repeated` of them from the L2.

        cluster_size   of its CTA's cluster
        sms            that stream at once (default: enough to keep the memory busy): of few, each gets nearly what its port takes
        """
        timing = self.timing
        port = timing.port_bytes_per_clk
        idle = 0.0 if sms is None else max(0.0, 1 - sms * port * self.clock_ghz / self.hbm_gbps)
        rate = timing.sm_bytes_per_clk + (port - timing.sm_bytes_per_clk) * idle
        cost = nbytes - repeated + repeated / timing.repeat_share
        return self.cycles_us(cost / rate) / dict(timing.wide_cluster_share).get(cluster_size, 1.0)

    @staticmethod
    def from_device(name: str, sms: int, resident: Residency | None = None) -> Part:
        """The part of a device, from its name ("NVIDIA H100 80GB HBM3") and its number of SMs.

        `resident` is what an occupancy query on the device said; it takes the place of the table. A device with another number of SMs
        than its part (another board, a MIG slice) has an unknown residency, and memory rate and L2 in proportion to its SMs.
        Raises UnknownPart for a device that is in no table.
        """
        part = next((PARTS[key] for pattern, key in _DEVICE_NAMES if re.search(pattern, name, re.IGNORECASE)), None)
        if part is None:
            raise UnknownPart(name=name, known=tuple(PARTS))
        if sms != part.sms:
            part = _slice(part, sms)
        return part if resident is None else replace(part, max_clusters=resident)


def _slice(part: Part, sms: int) -> Part:
    """`part` with another number of SMs."""
    share = sms / part.sms
    note = f"{sms} of {part.sms} SMs: memory and L2 rates are in proportion, not measured"
    return replace(
        part, name=f"{part.name}-{sms}sm", sms=sms, hbm_gbps=part.hbm_gbps * share, l2_gbps=part.l2_gbps * share,
        l2_bytes=int(part.l2_bytes * share), max_clusters={}, notes=(*part.notes, note),
    )  # fmt: skip


def part_named(name: Part | str) -> Part:
    """Look up a part; upper and lower case, blanks and underscores do not matter. A Part is what it is.

    Raises UnknownPart, which lists the names.
    """
    if isinstance(name, Part):
        return name
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower())
    if wanted not in PARTS:
        raise UnknownPart(name=name, known=tuple(PARTS))
    return PARTS[wanted]


# Occupancy query on one H100 80GB HBM3 (own experiment, recorded 2026-11). A cluster lives in one GPC,
# and those have 16 or 18 SMs: 30 clusters of 4 are only 120 SMs.
_H100_RESIDENCY: Residency = {1: {1: 132, 2: 66, 4: 30, 8: 15, 16: 7}, 2: {1: 264, 2: 132, 4: 62, 8: 30, 16: 14}}

H100_SXM = Part(
    name="h100-sxm",
    arch="sm_90a",
    sms=132,  # NVIDIA H100 data sheet, SXM5
    smem_per_cta=232448,  # 227 KB: CUDA programming guide, compute capability 9.0
    smem_per_sm=233472,  # 228 KB: same table
    hbm_gbps=3150,  # own experiment, recorded 2026-11: 3.10 TB/s for 201 MB per launch, 3.15 when launches overlap; data sheet 3350
    l2_bytes=50 * 2**20,  # NVIDIA H100 architecture white paper
    l2_gbps=5500,  # not measured here; published microbenchmarks of H100 parts lie between 5.5 and 7 TB/s
    clock_ghz=1.755,  # the clock at which the cycle counts in Timing were taken
    cluster_limit=16,  # 8 is portable, 16 by opting in
    max_clusters=_H100_RESIDENCY,
)

H200 = replace(
    H100_SXM,  # the same GH100 die with 132 SMs, and other memory
    name="h200",
    hbm_gbps=4560,  # own experiment, 2026-11-23: 400 MB by 128 to 132 CTAs; 4.51 by 120, 3.87 by 64; data sheet 4800
    l2_bytes=60 * 2**20,  # published figure (2026-11); not measured
    notes=("rates are measured, latencies are the H100's",),
)

_BLACKWELL_NOTE = "read rate is 0.94 of the data sheet's, latencies are the H100's, residency of clusters is unknown; not measured"

B200 = Part(
    name="b200",
    arch="sm_100a",
    sms=148,  # published figure (2026-11); two dies, seen as one device
    smem_per_cta=232448,  # CUDA programming guide, compute capability 10.0
    smem_per_sm=233472,
    hbm_gbps=7520,  # 0.94 (H100's ratio) x 8000 of the data sheet; not measured
    l2_bytes=126 * 2**20,  # published figure (2026-11); not measured
    l2_gbps=9000,  # not measured: H100's per SM, at this clock and number of SMs, rounded up
    clock_ghz=1.85,  # between the published base and boost clocks
    cluster_limit=16,
    max_clusters={},
    notes=(_BLACKWELL_NOTE,),
)

RTX_PRO_6000 = Part(
    name="rtx-pro-6000",
    arch="sm_120a",
    sms=188,  # NVIDIA RTX PRO 6000 Blackwell data sheet
    smem_per_cta=101376,  # 99 KB: CUDA programming guide, compute capability 12.0
    smem_per_sm=102400,  # 100 KB: same table
    hbm_gbps=1684,  # 0.94 x 1792 (GDDR7) of the data sheet; not measured
    l2_bytes=128 * 2**20,  # data sheet of the GB202 die
    l2_gbps=8000,  # not measured; far above the memory's rate, so that it does not decide anything
    clock_ghz=2.3,  # below the published boost clock of 2.6
    cluster_limit=8,
    max_clusters={},
    notes=(_BLACKWELL_NOTE,),
)

PARTS: dict[str, Part] = {part.name: part for part in (H100_SXM, H200, B200, RTX_PRO_6000)}

# A GH200's memory is another one: `\b` keeps "GH200" from being taken for an H200. An H100 PCIe has 114 SMs and becomes a slice.
_DEVICE_NAMES = ((r"\bH100\b", "h100-sxm"), (r"\bH200\b", "h200"), (r"\bB200\b", "b200"), (r"RTX PRO 6000", "rtx-pro-6000"))
