"""Tensors for harness kernels on the GPU, and verdicts on what comes out."""

from __future__ import annotations

from typing import Any

DEVICE = "cuda"


def torch_dtype(dtype: str) -> Any:
    """torch's name of bf16, f16, f32 or i32."""
    import torch

    return {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "i32": torch.int32}[dtype]


def random(dtype: str, *shape: int, scale: float = 1.0) -> Any:
    """Fresh normal numbers on the GPU."""
    import torch

    return (torch.randn(*shape, device=DEVICE) * scale).to(torch_dtype(dtype))


def poisoned(dtype: str, *shape: int) -> Any:
    """NaN on the GPU: what a kernel does not write stays visible."""
    import torch

    return torch.full(shape, float("nan"), device=DEVICE, dtype=torch_dtype(dtype))


def ints(*values: int) -> Any:
    """An i32 vector on the GPU."""
    import torch

    return torch.tensor(values, device=DEVICE, dtype=torch.int32)


def assert_close(got: Any, want: Any, bound: Any, case: str) -> None:
    """`|got - want| <= bound` everywhere (`bound` a number or a tensor); NaN only where `want` has it. Says which element is worst."""
    import torch

    assert got.shape == want.shape, f"{case}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    got, want = got.double(), want.double()
    excess = (got - want).abs() - torch.as_tensor(bound, device=got.device, dtype=torch.float64)
    excess = torch.where(got.isnan() & want.isnan(), -float("inf"), excess.nan_to_num(float("inf")))
    if excess.numel() and float(excess.max()) > 0:
        where = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        wrong = int((excess > 0).sum())
        raise AssertionError(
            f"{case}: {wrong} of {excess.numel()} elements are off; worst at {where}: got {float(got[where])!r}, expected "
            f"{float(want[where])!r}, {float(excess[where]):.3g} more than allowed; {int(got.isnan().sum())} NaN in the result"
        )


def same_bits(a: Any, b: Any) -> bool:
    """Equal, NaN being equal to NaN."""
    import torch

    return bool(torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0)) and torch.equal(a.isnan(), b.isnan()))
