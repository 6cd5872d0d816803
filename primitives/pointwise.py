"""Activation functions, in float32, of a scalar or of a fragment."""

from __future__ import annotations

import cutlass.cute as cute

LOG2E = 1.4426950408889634


def silu(x):
    """x * sigmoid(x)."""
    return x / (1.0 + cute.math.exp2(x * -LOG2E, fastmath=True))


def gelu(x):
    """The tanh approximation of x * Phi(x)."""
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1.0 + cute.math.tanh(inner, fastmath=True))
