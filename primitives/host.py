"""The host's part of a launch: what `launch` works out on the CPU, in compiled code, in every call."""

import cutlass.cute as cute
from cutlass import Boolean, Int32, Numeric


def flat(tensor: cute.Tensor) -> cute.Tensor:
    """All elements of a tensor without gaps as one vector, in the order in which they lie in memory."""
    return cute.make_tensor(tensor.iterator, cute.make_layout(cute.size(tensor)))


def room(workspace: cute.Tensor, at: int, dtype: type[Numeric], n: int) -> cute.Tensor:
    """`n` elements of `dtype` from byte `at` of the workspace, which is a vector of i32; `at` is a multiple of what they are aligned to."""
    return cute.make_tensor(cute.recast_ptr(workspace.iterator + at // 4, dtype=dtype), cute.make_layout(n))


def gapless(*tensors: cute.Tensor) -> Int32:
    """1 if each tensor is row-major without gaps, or empty; else 0.

    Compares the strides that only run time knows, those to the left of a dimension of run-time size: a call has compared the others by
    then. As for torch, the stride of a dimension of size 1 may be anything.
    """
    whole = Boolean(True)
    for tensor in tensors:
        packed, fits, empty = 1, Boolean(True), Boolean(False)
        for dim, stride in zip(reversed(tensor.shape), reversed(tensor.stride)):
            if not isinstance(stride, int):
                fits = fits & ((stride == packed) | (dim == 1))
            if not isinstance(dim, int):
                empty = empty | (dim == 0)
            packed = packed * dim
        whole = whole & (fits | empty)
    return Int32(whole)
