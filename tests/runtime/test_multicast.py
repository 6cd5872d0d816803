"""Kernels whose inputs come by multicast, compiled without a GPU: what the PTX asks for, and of whom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cfdsl.compiler.parts import PARTS
from cfdsl.compiler.stages import lower
from cfdsl.models import resolve
from cfdsl.runtime import toolchain
from fusions.attention_block import attention_block

pytestmark = pytest.mark.compile

COPY = r"cp\.async\.bulk\.shared::cluster\.global\.mbarrier::complete_tx::bytes\.multicast::cluster \[\S+, \[\S+, (\S+), \[\S+, (\S+);"


def ptx_of(folder: Path, cluster_size: int, **overrides: Any) -> str:
    fixed = {"cluster_size": cluster_size, "multicast": True, **overrides}
    lowered = lower(attention_block, resolve("smollm2-135m"), 1, "bf16", PARTS["h100-sxm"], fixed, {"qkv": "rows"})
    path = folder / f"{folder.name}.py"  # modules are told apart by file name
    path.write_text(lowered.source)
    return toolchain.build(path, lowered.plan, "sm_90a", "attention_block").ptx.decode()


def test_each_rank_asks_for_its_part_for_all(tmp_path: Path) -> None:
    ptx = ptx_of(tmp_path, 4)
    assert re.findall(COPY, ptx) == [("288", "15")] * 3  # a quarter of 576 x 2 bytes, to ranks 0 to 3
    requests = [match.start() for match in re.finditer(COPY, ptx)]
    waits = [match.start() for match in re.finditer(r"griddepcontrol\.wait", ptx)]
    assert requests[0] < waits[-1] < requests[1]  # the weight before the end of the kernel ahead, the inputs after it
    assert ptx.rindex("barrier.cluster.wait") < requests[0]


def test_sixteen_ranks_of_uneven_parts(tmp_path: Path) -> None:
    found = re.findall(COPY, ptx_of(tmp_path, 16))
    assert [mask for _, mask in found] == ["65535"] * 3  # all sixteen bits
    assert all(size.startswith("%r") for size, _ in found)  # 4 or 5 chunks of 16 bytes


def test_one_rank_alone_takes_an_ordinary_copy(tmp_path: Path) -> None:
    ptx = ptx_of(tmp_path, 1)
    assert ".multicast::cluster" not in ptx
    assert len(re.findall(r"cp\.async\.bulk\.shared::cluster\.global\.mbarrier::complete_tx::bytes \[\S+, \[\S+, 1152, ", ptx)) == 3


def test_off_there_is_none(tmp_path: Path) -> None:
    assert ".multicast::cluster" not in ptx_of(tmp_path, 4, multicast=False)
