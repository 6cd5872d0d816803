"""Activation functions, in float32, of a scalar or of a fragment."""

from __future__ import annotations

import cutlass.cute as cute

LOG2E = 1.4426950408889634


def silu(x):
    """x * sigmoid(x), to about 1e-6 |x|. `x`: Float32, or a fragment."""
    return x / (1.0 + cute.math.exp2(x * -LOG2E, fastmath=True))


def gelu(x):
    """The tanh approximation of x * Phi(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415). `x`: Float32, or a fragment.

    The hardware's tanh is good to 2^-11, so the result is to 2.5e-4 |x|: less than bf16 rounds, about what f16 does.
    """
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1.0 + cute.math.tanh(inner, fastmath=True))
