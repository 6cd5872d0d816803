"""`bench decode`: weights, a decoder per context, Hugging Face's decode on the same weights, everything in one record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cfdsl.hf.peer import WAYS, HfDecode, hf_model
from cfdsl.hf.session import decoder_class
from cfdsl.hf.step_trace import REPLAYS, trace_step, traced
from cfdsl.hf.weights import random_weights
from cfdsl.models import ModelConfig
from cfdsl.runtime import decode_benchmark, measure

Log = Callable[[str], None]


def benchmark_decode(
    sizes: ModelConfig, contexts: Sequence[int], *, dtype: str = "bf16", steps: int = 64, peers: bool = True, budget_s: float = 300.0,
    seed: int = 0, log: Log = lambda text: None, device: str = "cuda", layers: str = "whole",
) -> dict[str, Any]:  # fmt: skip
    """Everything that `bench decode` prints: where, the read ceiling, and a row per context with its kernels and peers.

    Random weights of `seed`, made on the device; caches filled with random values. budget_s: no further peer is begun after so many
    seconds of peers (compiling takes most of them); what was left out is named in the record. layers: as the Decoder's.
    """
    ceiling = measure.read_ceiling()
    log(f"read ceiling {ceiling.gbps:,.0f} GB/s ({ceiling.how})")
    weights = random_weights(sizes, dtype, device, seed)
    held = sum(weight.numel() * weight.element_size() for weight in weights.values())
    log(f"{len(weights)} weights, {held / 1e9:.2f} GB")
    rows, left_out, spent = [], ([] if peers else ["all, as asked"]), 0.0
    model: Any = None
    for context in contexts:
        decoder, row = measure_ours(sizes, weights, context, steps, dtype, ceiling.gbps, log, layers)
        rows.append(row)
        if peers and spent <= budget_s:
            started = time.monotonic()
            model = model or _attempt(lambda: hf_model(sizes, weights), "Hugging Face", left_out)
            if model is not None:
                row["peers"] += measure_peer(model, decoder, context, steps, row["us"], left_out, log)
            spent += time.monotonic() - started
        elif peers:
            left_out.append(f"Hugging Face at {context:,}: more than {budget_s:.0f} s were spent on peers")
        del decoder
    return {
        "model": sizes.name, "dtype": dtype, "layers": layers, "environment": measure.environment(),
        "ceiling": {"gbps": ceiling.gbps, "how": ceiling.how, "tried": dict(ceiling.tried)},
        "weight_bytes": held, "l2_bytes": measure.l2_bytes(), "seed": seed, "rows": rows, "peers_left_out": left_out,
    }  # fmt: skip


def measure_ours(
    sizes: ModelConfig, weights: Mapping[str, Tensor], context: int, steps: int, dtype: str, ceiling_gbps: float, log: Log, layers: str
) -> tuple[Any, dict[str, Any]]:
    """A decoder with `context` random tokens in its caches, and its row: whole steps first, then each kernel."""
    capacity = decode_benchmark.capacity_for(context, steps)
    log(f"compiling for {context:,} tokens")
    decoder = decoder_class()(sizes, weights, capacity=capacity, dtype=dtype, layers=layers)
    decode_benchmark.fill_caches(decoder)
    row = decode_benchmark.measure_steps(decoder, context, steps, ceiling_gbps)
    log(f"{context:,} tokens: {row['us'] / 1e3:.3f} ms per token, {row['of_ceiling']:.1%} of the ceiling")
    row["kernels"] = decode_benchmark.measure_kernels(decoder, context + steps // 2, ceiling_gbps)
    row["kernels_us"] = decode_benchmark.totals(row["kernels"])
    row["l2"] = decode_benchmark.in_l2(row["bytes"], measure.l2_bytes())
    row["peers"] = []
    return decoder, row


def trace_decode(
    sizes: ModelConfig, context: int, dtype: str = "bf16", seed: int = 0, device: str = "cuda", layers: str = "whole"
) -> list[tuple[str, Any]]:
    """One step with `context` random tokens in the caches, on a timeline: see `step_trace.trace_step`."""
    weights = random_weights(sizes, dtype, device, seed)
    capacity = decode_benchmark.capacity_for(context, REPLAYS)
    decoder = decoder_class()(sizes, weights, capacity=capacity, dtype=dtype, layers=layers, settings=traced(layers))
    decode_benchmark.fill_caches(decoder)
    return trace_step(decoder, context)


def measure_peer(model: Any, decoder: Any, context: int, steps: int, ours_us: float, left_out: list[str], log: Log) -> list[dict[str, Any]]:
    """Hugging Face's time per token with the same caches' contents, in the first way that works; a list of one or none."""
    decode = _attempt(lambda: HfDecode(model, decoder.capacity), f"Hugging Face at {context:,}", left_out)
    for way in WAYS if decode is not None else ():
        what = f"Hugging Face ({way.variant}) at {context:,}"
        started = time.monotonic()
        decode.fill(decoder.caches)
        decode.reset(context)
        log(f"{what}: compiling")
        replay = _attempt(lambda way=way: way.ready(decode), what, left_out)  # type: ignore[misc]
        if replay is None:
            continue
        ready_s = time.monotonic() - started
        error = compare(decode, replay, decoder, context)
        times = decode_benchmark.time_steps(lambda: decode.reset(context), replay, steps)
        log(f"{what} tokens: {times.us / 1e3:.3f} ms per token")
        return [
            {
                "name": "Hugging Face, StaticCache, torch.compile", "variant": way.variant, "us": times.us, "fastest_us": times.fastest_us,
                "slowest_us": times.slowest_us, "mean_us": times.mean_us, "logits_error": error, "ready_s": ready_s,
                "speedup": times.us / ours_us,
            }
        ]  # fmt: skip
    return []


def compare(decode: HfDecode, replay: Callable[[], object], decoder: Any, context: int) -> float:
    """One step each from the same caches, length and token: the relative difference of the logits."""
    decode.fill(decoder.caches)
    decode.reset(context)
    decode.token.fill_(1)
    replay()
    decoder.reset(context)
    decoder.token.fill_(1)
    decoder.step()
    return decode_benchmark.logits_error(decoder.logits, decode.logits.float())


def _attempt(make: Callable[[], Any], what: str, left_out: list[str]) -> Any:
    """What `make` gives, or None with the reason noted: a peer that this machine cannot run must not cost the measurement."""
    try:
        return make()
    except Exception as error:
        torch.cuda.empty_cache()
        note = f"{what}: {measure.in_one_line(error)}"
        left_out.extend([note] if note not in left_out else [])
        return None
