"""The table of parts, and what follows from its numbers."""

from __future__ import annotations

import pytest

from cfdsl.compiler.config import CLUSTER_SIZES
from cfdsl.compiler.parts import B200, H100_SXM, H200, PARTS, RTX_PRO_6000, Part, part_named
from cfdsl.errors import UnknownPart


def test_lookup_forgives_case_and_blanks() -> None:
    assert part_named("h100-sxm") is H100_SXM
    assert part_named(" RTX Pro_6000 ") is RTX_PRO_6000


def test_unknown_part_lists_the_names() -> None:
    with pytest.raises(UnknownPart) as caught:
        part_named("h100")
    assert str(caught.value) == "there is no part 'h100'.\n  remedy: use one of h100-sxm, h200, b200, rtx-pro-6000."


def test_every_part_is_found_under_its_own_name_and_can_be_a_key() -> None:
    assert [part_named(name).name for name in PARTS] == list(PARTS)
    assert len({*PARTS.values()}) == len(PARTS)


@pytest.mark.parametrize(("size", "one", "two"), [(1, 132, 264), (2, 66, 132), (4, 30, 62), (8, 15, 30), (16, 7, 14)])
def test_h100_residency_is_what_was_measured(size: int, one: int, two: int) -> None:
    for part in (H100_SXM, H200):
        assert (part.resident(size, 1), part.resident(size, 2)) == (one, two)


def test_residency_never_promises_more_ctas_than_there_is_room() -> None:
    for part in PARTS.values():
        for ctas in (1, 2):
            for size in CLUSTER_SIZES:
                assert (part.resident(size, ctas) or 0) * size <= part.sms * ctas


def test_unknown_residency_is_none_but_a_cluster_of_one_needs_no_table() -> None:
    assert B200.resident(2) is None
    assert B200.resident(1, 2) == 2 * 148
    assert RTX_PRO_6000.resident(16) == 0  # above its cluster limit of 8: not unknown, but impossible


def test_smem_budget() -> None:
    assert H100_SXM.smem_budget(1) == 232448  # the limit of a CTA: 233472 - 1024 reserved is the same number
    assert H100_SXM.smem_budget(2) == 115712  # 233472 / 2 - 1024
    assert RTX_PRO_6000.smem_budget(2) == 50176  # 102400 / 2 - 1024


def test_rates() -> None:
    assert H100_SXM.at_hbm_us(3_150_000) == pytest.approx(1.0)  # 3150 GB/s = 3150 bytes per ns
    assert H100_SXM.cycles_us(1755) == pytest.approx(1.0)  # 1.755 GHz
    assert H100_SXM.at_sm_us(64_935) == pytest.approx(1.0)  # 37 bytes a cycle x 1755 cycles


@pytest.mark.parametrize(
    ("device", "sms", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 132, "h100-sxm"),
        ("NVIDIA H200", 132, "h200"),
        ("NVIDIA B200", 148, "b200"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 188, "rtx-pro-6000"),
    ],
)
def test_from_device(device: str, sms: int, name: str) -> None:
    assert Part.from_device(device, sms) is PARTS[name]


def test_from_device_with_other_sms_knows_no_residency_and_scales_rates() -> None:
    part = Part.from_device("NVIDIA H100 PCIe", 66)
    assert (part.name, part.sms, part.hbm_gbps) == ("h100-sxm-66sm", 66, 1575)  # half of 132 SMs: half of 3150
    assert (part.resident(2), part.resident(1)) == (None, 66)
    assert "not measured" in part.notes[-1]


def test_from_device_takes_what_the_device_said() -> None:
    part = Part.from_device("NVIDIA H200", 132, {1: {2: 64}, 2: {2: 128}})
    assert (part.resident(2, 1), part.resident(2, 2), part.resident(4, 1)) == (64, 128, None)
    assert part != H200


@pytest.mark.parametrize("device", ["NVIDIA GH200 480GB", "NVIDIA A100-SXM4-80GB", ""])
def test_from_device_does_not_guess(device: str) -> None:
    with pytest.raises(UnknownPart):
        Part.from_device(device, 132)
