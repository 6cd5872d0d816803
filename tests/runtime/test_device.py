from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cfdsl.errors import UnknownPart
from cfdsl.runtime import device


def test_the_launch_that_the_driver_is_asked_about() -> None:
    config = device._launch(cluster=4, clusters=32, threads=288, smem=100_000)
    assert (config.gridDimX, config.blockDimX, config.sharedMemBytes, config.numAttrs) == (128, 288, 100_000, 1)
    assert config.attrs[0].id.name == "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION"
    assert config.attrs[0].value.clusterDim.x == 4


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, sms: int) -> list[tuple[int, int]]:
    """A CUDA device of this name; returns the (cluster size, shared memory) of the queries that it gets."""
    asked: list[tuple[int, int]] = []

    def resident(code: bytes, kernel: str, *, cluster: int, smem: int, **rest: int) -> int:
        asked.append((cluster, smem))
        return sms // cluster - 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=name, multi_processor_count=sms))
    monkeypatch.setattr(device, "resident_clusters", resident)
    monkeypatch.setattr(device, "residency", device.residency.__wrapped__)
    return asked


def test_the_part_at_hand_holds_what_its_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, "NVIDIA H100 80GB HBM3", 132)
    part = device.part_at_hand()
    assert (part.name, part.arch) == ("h100-sxm", "sm_90a")
    assert [part.resident(size) for size in (1, 2, 4, 8, 16)] == [131, 65, 32, 15, 7]
    assert {smem for _, smem in asked} == {232448, 115712}  # all of an SM, and half of it


def test_a_device_in_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "GeForce 256", 1)
    with pytest.raises(UnknownPart, match="GeForce 256"):
        device.part_at_hand()


def test_no_capture_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not device.capturing()
