"""What the tests of tracing share: a model, a small fusion, and the mistake that a spec raises."""

from __future__ import annotations

from typing import Any, Literal

import pytest

import cfdsl as cf

MODEL = cf.ModelConfig("toy", hidden=64, heads=4, kv_heads=2, head_dim=16)


def refused(spec: Any, kind: type[cf.CfdslError], **options: Any) -> str:
    """The text of the mistake that tracing a spec raises, without the user's line."""
    with pytest.raises(kind) as caught:
        cf.fusion(spec).trace(MODEL, **options)
    assert type(caught.value) is kind
    file = spec.__code__.co_filename
    assert caught.value.src is None or caught.value.src.file == file
    return "\n".join(line for line in str(caught.value).splitlines() if file not in line)


def here(spec: Any, offset: int) -> int:
    """The number of the line `offset` lines into a spec."""
    return int(spec.__code__.co_firstlineno) + offset


@cf.fusion
def scaled(m: cf.ModelConfig, batch: int, *, gate: Literal["silu", "gelu"] = "silu", twice: bool = False) -> cf.Outputs:
    """A gate."""
    x = cf.input("x", (batch, m.hidden))
    y = cf.silu(x) if gate == "silu" else cf.gelu(x)
    return cf.outputs(y=y + y if twice else y)
