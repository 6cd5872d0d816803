"""Compiled fusions on a GPU: right, repeatable, safe in a CUDA graph and under torch.compile, quick to call, and clear when refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from against import LIMIT, error

import cfdsl as cf
from cfdsl.errors import ArgumentError, CacheFull, ColdCompileInCapture, Errors, LengthOutOfRange
from cfdsl.runtime import measure
from cfdsl.runtime.flags import STATUS
from cfdsl.runtime.kernel import Kernel
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm

pytestmark = pytest.mark.gpu

MODEL = "smollm2-135m"  # 576 wide, 9 query heads over 3: small, and none of its sizes is a power of two
CAPACITY = 640


@pytest.fixture(scope="module", params=["bf16", "f16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def block() -> Kernel:
    return cf.compile(attention_block, MODEL)


def inputs(fusion: cf.Fusion, model: str = MODEL, dtype: str = "bf16", **how: Any) -> dict[str, torch.Tensor]:
    """Example tensors on the GPU; what must not be read, and the outputs, are NaN."""
    how = {"length": 300, "capacity": CAPACITY, **how}
    made: dict[str, torch.Tensor] = fusion.example_inputs(cf.models.resolve(model), 1, dtype, device="cuda", **how)
    return made


def check(fusion: cf.Fusion, kernel: Kernel, tensors: dict[str, torch.Tensor], dtype: str = "bf16", model: str = MODEL) -> None:
    want = fusion.reference(cf.models.resolve(model), tensors, "f64")
    kernel(**tensors)
    torch.cuda.synchronize()
    for name, value in want.items():
        assert error(tensors[name], value) <= LIMIT[dtype], name
    assert kernel.status() == ()


def test_rms_norm(dtype: str) -> None:
    check(rms_norm, cf.compile(rms_norm, MODEL, dtype=dtype), inputs(rms_norm, dtype=dtype), dtype)


@pytest.mark.parametrize("qkv", ["grid", "rows"])
@pytest.mark.parametrize("length", [0, 1, 37, 300, CAPACITY - 1])
def test_attention_block(dtype: str, length: int, qkv: str) -> None:
    kernel = cf.compile(attention_block, MODEL, dtype=dtype, qkv=qkv)
    check(attention_block, kernel, inputs(attention_block, dtype=dtype, length=length), dtype)


def test_arguments_in_order_and_by_name_are_the_same_call(block: Kernel) -> None:
    first, second = inputs(attention_block), inputs(attention_block)
    block(*(first[arg.name] for arg in block.args))
    block(**second)
    assert torch.equal(first["y"], second["y"])


def test_a_thousand_runs_are_bitwise_equal(block: Kernel) -> None:
    tensors = inputs(attention_block)
    args = [tensors[arg.name] for arg in block.args]
    block(*args)
    want = [tensors[name].clone() for name in ("y", "cache_k", "cache_v")]
    differences = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        tensors["y"].fill_(float("nan"))
        block(*args)
        for name, value in zip(("y", "cache_k", "cache_v"), want):
            differences += (tensors[name].view(torch.int16) != value.view(torch.int16)).sum()
    assert int(differences) == 0


def test_a_graph_replays_while_the_cache_grows(block: Kernel) -> None:
    tensors = inputs(attention_block, length=290)
    mirror = {name: value.clone() for name, value in tensors.items()}
    block(**{name: value.clone() for name, value in tensors.items()})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block(**tensors)
        tensors["length"] += 1
        tensors["pos"] += 1
    for _ in range(40):
        want = attention_block.reference(cf.models.resolve(MODEL), mirror, "f64")
        tensors["y"].fill_(float("nan"))
        graph.replay()
        assert error(tensors["y"], want["y"]) <= LIMIT["bf16"]
        mirror.update(cache_k=tensors["cache_k"].clone(), cache_v=tensors["cache_v"].clone())
        mirror["length"] += 1
        mirror["pos"] += 1
    assert error(tensors["cache_k"], want["cache_k"]) <= LIMIT["bf16"]
    assert int(tensors["length"]) == 330


def test_capture_of_a_kernel_that_is_not_ready_is_refused(own_cache: Path) -> None:
    kernel = cf.compile(rms_norm, MODEL, part="h100-sxm", cluster_size=2)
    tensors = inputs(rms_norm)
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="relaxed")
        tensors["y"].fill_(0)  # something to capture
        with pytest.raises(ColdCompileInCapture):
            kernel(**tensors)
        with pytest.raises(ColdCompileInCapture):
            cf.compile(rms_norm, MODEL, part="h100-sxm", cluster_size=4)
        graph.capture_end()
    kernel(**tensors)
    torch.cuda.synchronize()
    assert not tensors["y"].isnan().any()


def test_prepare_is_enough_before_a_capture(own_cache: Path) -> None:
    """In the strict capture mode, in which loading CUDA code is an error: it must have happened."""
    kernel = cf.compile(rms_norm, MODEL, part="h100-sxm", cluster_size=8)
    kernel.prepare()
    tensors = inputs(rms_norm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        kernel(**tensors)
    graph.replay()
    want = rms_norm.reference(cf.models.resolve(MODEL), tensors, "f64")
    assert error(tensors["y"], want["y"]) <= LIMIT["bf16"]


def test_it_runs_on_the_current_stream(block: Kernel) -> None:
    """A long sleep on the side stream: a launch on another stream would read x before it is there."""
    tensors = inputs(attention_block)
    want = attention_block.reference(cf.models.resolve(MODEL), tensors, "f64")["y"]
    x = tensors["x"].clone()
    tensors["x"].fill_(float("nan"))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        tensors["x"].copy_(x)
        block(**tensors)
    stream.synchronize()
    assert error(tensors["y"], want) <= LIMIT["bf16"]


def test_a_call_allocates_nothing(block: Kernel) -> None:
    tensors = inputs(attention_block)
    block(**tensors)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        block(**tensors)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_opcheck(block: Kernel) -> None:
    tensors = {name: value.nan_to_num() if value.is_floating_point() else value for name, value in inputs(attention_block).items()}
    torch.library.opcheck(block.op, tuple(tensors[arg.name] for arg in block.args))


def test_torch_compile(block: Kernel) -> None:
    """Fullgraph, with Inductor: the kernel's mutations are seen, between two ops of its own."""
    tensors = inputs(attention_block)
    want = attention_block.reference(cf.models.resolve(MODEL), tensors, "f64")

    @torch.compile(fullgraph=True)
    def step(x: torch.Tensor, others: dict[str, torch.Tensor]) -> torch.Tensor:
        block(x=x * 1, **others)
        return others["y"] + others["y"]

    got = step(tensors["x"], {name: value for name, value in tensors.items() if name != "x"})
    assert error(got, 2 * want["y"]) <= LIMIT["bf16"]
    assert error(tensors["cache_k"], want["cache_k"]) <= LIMIT["bf16"]


VARYING = ("x", "residual", "pos", "length", "y")  # from call to call: what is no weight, no cache and no table


def test_host_time_per_call(block: Kernel, record_property: Callable[[str, object], None]) -> None:
    """At most 7 us; on a host, or in a moment, in which torch takes more than that for the least that it does, about as much."""
    tensors = inputs(attention_block)
    args = tuple(tensors[arg.name] for arg in block.args)
    step = block.bind(**{name: tensor for name, tensor in tensors.items() if name not in VARYING})
    given = tuple(tensors[arg.name] for arg in block.args if arg.name in VARYING)
    found = measure.host_us({
        "a call": lambda: block(*args), "by name": lambda: block(**tensors), "all but 5 bound": lambda: step(*given),
        "all bound": block.bind(**tensors), "torch's add_": lambda: tensors["y"].add_(0),
    }, least_s=1.0)  # fmt: skip
    text = ", ".join(f"{name} {us:.2f}" for name, us in found.items())
    record_property("host_us", text)
    print(f"\nhost, us: {text}")
    assert found["a call"] <= max(7.0, 1.05 * found["torch's add_"])
    assert found["all but 5 bound"] <= max(7.0, 0.8 * found["torch's add_"])


def test_some_tensors_bound(block: Kernel) -> None:
    """The same bits; other inputs and outputs in every launch; what is wrong is told, and nothing is launched."""
    tensors = inputs(attention_block)
    block(**tensors)
    want = tensors["y"].clone()
    step = block.bind(**{name: tensor for name, tensor in tensors.items() if name not in VARYING})
    other = {name: tensors[name].clone() for name in VARYING}
    other["y"].fill_(float("nan"))
    step(*(other[arg.name] for arg in block.args if arg.name in VARYING))
    assert torch.equal(other["y"], want)
    other["x"].mul_(2.0)
    step(**other)
    assert not torch.equal(other["y"], want)
    kept = other["y"].fill_(float("nan"))
    with pytest.raises(ArgumentError, match="argument 'residual' must be a bfloat16 tensor of shape .*, got shape"):
        step(**{**other, "residual": other["residual"][:, :-8]})
    with pytest.raises(ArgumentError, match="argument 'x' must be a tensor on a cuda device, got one on cpu"):
        step(**{**other, "x": other["x"].cpu()})
    torch.cuda.synchronize()
    assert kept.isnan().all()
    rest = block.bind(**{name: tensor for name, tensor in tensors.items() if name != "cache_v"})
    with pytest.raises(ArgumentError, match="argument 'cache_v' must be a contiguous tensor"):
        rest(with_gaps(tensors["cache_v"]))
    with pytest.raises(ArgumentError, match="argument 'cache_v' must be .* with tokens = 640, as in 'cache_k'"):
        rest(tensors["cache_v"][:, :, :-8].contiguous())


def test_a_bound_launch_is_the_same_and_takes_less_of_the_host(block: Kernel) -> None:
    """On the stream that is current at the call, with what the tensors hold then; at least 1 us less than a call."""
    tensors = inputs(attention_block)
    args = [tensors[arg.name] for arg in block.args]
    bound = block.bind(**tensors)
    block(*args)
    want = tensors["y"].clone()
    tensors["y"].fill_(float("nan"))
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        bound()
    other.synchronize()
    assert torch.equal(tensors["y"], want)
    tensors["x"].mul_(2.0)
    bound()
    again = tensors["y"].clone()
    block(*args)
    assert torch.equal(again, tensors["y"])
    assert not torch.equal(again, want)
    found = measure.host_us({"call": lambda: block(*args), "bound": bound})
    assert found["bound"] <= found["call"] - 1


def with_gaps(cache: torch.Tensor) -> torch.Tensor:
    """The same, in a buffer with room for eight more tokens."""
    return torch.cat([cache, cache[:, :, :8]], 2)[:, :, :-8]


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device="cuda")[1:].view(tensor.shape)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wq", lambda t: t.float(), "argument 'wq' must be a bfloat16 tensor of shape .*, got dtype float32"),
        ("wk", lambda t: t[1:], "argument 'wk' must be a bfloat16 tensor of shape .*, got shape"),
        ("wv", lambda t: t.t().contiguous().t(), "argument 'wv' must be a contiguous tensor"),
        ("wo", lambda t: t.cpu(), "argument 'wo' must be a tensor on a cuda device, got one on cpu"),
        ("norm", misaligned, "argument 'norm' must be a tensor aligned to .* bytes"),
        ("cache_k", with_gaps, "^argument 'cache_k' must be a contiguous tensor"),
        ("cache_v", with_gaps, "^argument 'cache_v' must be a contiguous tensor"),
        ("cache_v", lambda t: t[:, :, :-8].contiguous(), "argument 'cache_v' must be .* with tokens = 640, as in 'cache_k'"),
        ("length", lambda t: t.long(), "argument 'length' must be an int32 tensor of shape"),
        ("y", lambda t: None, "argument 'y' must be .*, got None"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_launched(
    block: Kernel, name: str, change: Callable[[torch.Tensor], Any], message: str
) -> None:
    tensors = inputs(attention_block)
    with pytest.raises((ArgumentError, Errors), match=message):
        block(**{**tensors, name: change(tensors[name])})
    torch.cuda.synchronize()
    assert tensors["y"].isnan().all()


@pytest.mark.parametrize("length", [-5, CAPACITY, CAPACITY + 1000, 2**31 - 1, -(2**31)])
def test_a_length_out_of_range_is_clamped_and_flagged_and_leaves_the_cache_whole(block: Kernel, length: int) -> None:
    tensors = inputs(attention_block, length=CAPACITY - 1)
    guard = {}
    for name in ("cache_k", "cache_v"):  # the cache in the middle of a larger buffer: writes beside it would be seen
        shape = tensors[name].shape
        buffer = torch.full((3, shape.numel()), 7.0, dtype=tensors[name].dtype, device="cuda")
        buffer[1] = torch.randn(shape.numel(), device="cuda").to(buffer.dtype)
        guard[name] = (buffer, buffer.clone())
        tensors[name] = buffer[1].view(shape)
    tensors["length"].fill_(length)
    tensors["pos"].fill_(3)
    want = attention_block.reference(cf.models.resolve(MODEL), tensors, "f64")
    block.status(clear=True)
    block(**tensors)
    assert block.status(clear=True) == (STATUS[0],)
    assert block.status() == ()
    assert error(tensors["y"], want["y"]) <= LIMIT["bf16"]
    for name, (buffer, before) in guard.items():
        assert torch.equal(buffer, before), f"{name} must stay as it was: no index to store a token at"


def test_check_tells_lengths_before_a_call(block: Kernel) -> None:
    tensors = inputs(attention_block, length=CAPACITY - 1)
    block.check(**tensors)
    tensors["length"].fill_(CAPACITY)
    with pytest.raises(CacheFull, match=f"it holds {CAPACITY} of {CAPACITY} tokens"):
        block.check(**tensors)
    tensors["length"].fill_(-1)
    with pytest.raises(LengthOutOfRange, match="argument 'length' is -1"):
        block.check(**tensors)
    assert tensors["y"].isnan().all()


def test_a_cleared_workspace_works_whatever_a_time_out_left_in_it(block: Kernel) -> None:
    tensors = inputs(attention_block)
    want = attention_block.reference(cf.models.resolve(MODEL), tensors, "f64")["y"]
    block(**tensors)
    for workspaces in block._workspaces.values():
        workspaces[0][0] = 12345  # a barrier in which some have arrived
        workspaces[0][1] = 4
    assert block.status(clear=True) == (STATUS[2],)
    block(**tensors)
    assert block.status() == ()
    assert error(tensors["y"], want) <= LIMIT["bf16"]


def test_the_device_is_a_known_part_and_its_driver_says_what_it_holds() -> None:
    from cfdsl.runtime.device import part_at_hand

    part = part_at_hand()
    assert part.arch == "sm_90a"
    for ctas in (1, 2):
        known = [part.resident(size, ctas) for size in (1, 2, 4, 8, 16)]
        assert known[0] == part.sms * ctas
        assert all(room is not None and room * size <= part.sms * ctas for room, size in zip(known, (1, 2, 4, 8, 16)))
        assert known == sorted(known, reverse=True)


def test_a_launch_that_would_wait_for_ever_is_refused() -> None:
    """Shared memory for one CTA per SM, and a grid barrier over more CTAs than there are SMs."""
    import dataclasses

    from cfdsl.errors import NotResident

    kernel = cf.compile(attention_block, MODEL)
    twin = object.__new__(Kernel)
    twin.__dict__.update(kernel.__dict__, _workspaces={})
    config = kernel.config.with_(clusters=1 + torch.cuda.get_device_properties(0).multi_processor_count // kernel.config.cluster_size)
    twin.plan = dataclasses.replace(kernel.plan, config=config, smem_bytes=220_000, needs_residency=True)
    with pytest.raises(NotResident, match="at once"):
        twin.prepare()
