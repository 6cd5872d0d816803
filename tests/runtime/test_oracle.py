"""The oracle as a callable: a kernel's face on CPU tensors, caches and outputs in place."""

from __future__ import annotations

import pytest
import torch
from against import LIMIT, error

import cfdsl as cf
from cfdsl.errors import ArgumentError, ClustersDoNotDivide, Errors, UnknownOption
from cfdsl.runtime.flags import STATUS
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm

MODEL = cf.ModelConfig("tiny", 64, 6, 3, 16)


def inputs(**how: int) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = attention_block.example_inputs(MODEL, 1, "bf16", **{"length": 5, "capacity": 8, **how})
    return made


def test_it_writes_outputs_and_caches_in_place() -> None:
    tensors, block = inputs(), cf.oracle(attention_block, MODEL)
    want = attention_block.reference(MODEL, tensors)
    where = {name: value.data_ptr() for name, value in tensors.items()}
    assert block(**tensors) is None
    assert error(tensors["y"], want["y"]) < LIMIT["bf16"]
    for name in ("cache_k", "cache_v"):
        assert torch.equal(tensors[name].isnan(), want[name].isnan())
        torch.testing.assert_close(tensors[name], want[name], rtol=1e-2, atol=1e-3, equal_nan=True)
    assert where == {name: value.data_ptr() for name, value in tensors.items()}


@pytest.mark.compile
def test_arguments_are_those_of_the_kernel_in_its_order() -> None:
    """The same list, names, roles and dtypes, workspaces aside."""
    from cfdsl.compiler.config import Config
    from cfdsl.compiler.schedule import schedule

    preset = cf.oracle(attention_block, "smollm2-135m")
    assert [arg.name for arg in preset.args][:4] == ["x", "residual", "pos", "length"]
    assert {arg.role for arg in preset.args} == {"input", "weight", "cache", "output"}
    plan = schedule(cf.place(attention_block.trace("smollm2-135m"), cf.Mesh(3, 1)), Config(3, 1, 2))
    assert preset.args == tuple(arg for arg in plan.args if arg.role != "workspace")


def test_arguments_in_order_and_by_name_are_the_same_call() -> None:
    block = cf.oracle(attention_block, MODEL)
    first, second = inputs(), inputs()
    block(**first)
    block(*(second[arg.name] for arg in block.args))
    assert torch.equal(first["y"], second["y"])


def test_a_second_call_sees_what_the_first_appended() -> None:
    tensors, block = inputs(), cf.oracle(attention_block, MODEL)
    block(**tensors)
    tensors["length"] += 1
    tensors["pos"] += 1
    want = attention_block.reference(MODEL, tensors)
    block(**tensors)
    assert error(tensors["y"], want["y"]) < LIMIT["bf16"]


@pytest.mark.parametrize(
    ("fusion", "settings", "mesh"),
    [
        (attention_block, {}, cf.Mesh(3, 2)),  # 3 KV heads: two clusters cannot share them
        (attention_block, {"splits": 2}, cf.Mesh(6, 2, 2)),
        (attention_block, {"clusters": 1, "cluster_size": 4}, cf.Mesh(1, 4)),
        (rms_norm, {}, cf.Mesh(1, 2)),  # one unit per sequence, and there is one
    ],
)
def test_the_mesh_is_small_and_has_peers(fusion: cf.Fusion, settings: dict[str, int], mesh: cf.Mesh) -> None:
    assert cf.oracle(fusion, MODEL, **settings).placed.mesh == mesh


def test_it_moves_bytes_between_ranks() -> None:
    traffic = cf.oracle(attention_block, MODEL).traffic({"tokens": 8, "positions": 9, "length": 5})
    assert traffic.dsmem_bytes > 0
    assert traffic.grid_bytes > 0
    assert traffic.kv_read == 2 * 3 * 16 * 2 * 5


def test_what_cannot_be_placed_says_why() -> None:
    with pytest.raises(ClustersDoNotDivide, match="3 work units cannot be spread over 2 clusters"):
        cf.oracle(attention_block, MODEL, clusters=2)
    with pytest.raises(UnknownOption, match="fields of the mesh are: clusters, cluster_size, splits"):
        cf.oracle(attention_block, MODEL, warps=4)
    with pytest.raises(Errors, match="^4 mistakes"):
        cf.oracle(attention_block, "never", 0, warps=4, qkv="zz")


def test_bad_arguments_are_all_named_and_nothing_is_written() -> None:
    tensors, block = inputs(), cf.oracle(attention_block, MODEL)
    with pytest.raises(Errors) as caught:
        block(**{**tensors, "wq": tensors["wq"].float(), "cache_v": tensors["cache_v"][:, :, :-1]})
    assert {single.argument for single in caught.value.errors if isinstance(single, ArgumentError)} == {"wq", "cache_v"}
    with pytest.raises(ArgumentError, match="argument 'y' must be a bfloat16 tensor of shape"):
        block(**{name: value for name, value in tensors.items() if name != "y"})
    assert tensors["y"].isnan().all()


def test_parameters_get_no_gradient() -> None:
    tensors, block = inputs(), cf.oracle(attention_block, MODEL)
    block(**{name: torch.nn.Parameter(value) if name in ("wq", "wo", "norm") else value for name, value in tensors.items()})
    assert not tensors["y"].requires_grad
    assert not tensors["cache_k"].requires_grad


def test_a_tensor_at_any_address_will_do() -> None:
    tensors, block = inputs(), cf.oracle(attention_block, MODEL)
    shifted = torch.empty(tensors["norm"].numel() + 1, dtype=torch.bfloat16)[1:].copy_(tensors["norm"])
    block(**{**tensors, "norm": shifted})
    assert not tensors["y"].isnan().any()


@pytest.mark.parametrize(("length", "pos", "flagged"), [(7, 8, []), (8, 3, [0]), (-1, 0, [0]), (3, 9, [1]), (9, -1, [0, 1])])
def test_what_is_clamped_is_flagged(length: int, pos: int, flagged: list[int]) -> None:
    tensors, block = inputs(length=7), cf.oracle(attention_block, MODEL)
    tensors["length"].fill_(length)
    tensors["pos"].fill_(pos)
    assert len(tensors["cos"]) == 9
    block(**tensors)
    assert block.status(clear=True) == tuple(STATUS[bit] for bit in flagged)
    assert block.status() == ()


def test_a_token_outside_of_the_table_is_flagged() -> None:
    from fusions.embedding import embedding

    model, rows = MODEL.with_(vocab=50), cf.oracle(embedding, MODEL.with_(vocab=50))
    for token, flagged in ((0, ()), (49, ()), (50, (STATUS[3],)), (-1, (STATUS[3],))):
        tensors = embedding.example_inputs(model, token=token)
        rows(**tensors)
        assert torch.equal(tensors["y"][0], tensors["table"][min(max(token, 0), 49)])
        assert rows.status(clear=True) == flagged
