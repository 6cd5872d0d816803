"""Is there a GPU? Asked of the driver's library directly, so that a machine without one never waits for torch to load."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from functools import cache
from typing import TYPE_CHECKING

from cfdsl.errors import NoTarget

if TYPE_CHECKING:
    from cfdsl.compiler.parts import Part


@cache
def gpu_present() -> bool:
    """Whether the CUDA driver is installed and sees a device."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def gpu_part() -> Part | None:
    """The part of this machine's GPU; None where there is no GPU, or none that torch can use and cfdsl can compile for."""
    if not gpu_present():
        return None
    from cfdsl.runtime.device import part_at_hand

    try:
        return part_at_hand()
    except NoTarget:
        return None
