"""How sizes and times are written, the same in tables and in pictures.

What moves is counted in thousands, like the GB/s it is divided by. What lies in shared memory or in L2 is counted in 1024s, as parts have
it, and then says so: KiB.
"""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes that move, in the largest unit that leaves at least one: 512 B, 16.4 KB, 201.3 MB (1 KB = 1000 B)."""
    return _in_units(count, 1000, ("KB", "MB", "GB"))


def held(count: float) -> str:
    """Bytes of memory on the chip: 512 B, 16 KiB, 50 MiB (1 KiB = 1024 B)."""
    return _in_units(count, 1024, ("KiB", "MiB", "GiB"))


def _in_units(count: float, step: int, units: tuple[str, ...]) -> str:
    for power in range(len(units), 0, -1):
        if count >= step**power:
            return f"{trim(count / step**power)} {units[power - 1]}"
    return f"{trim(count)} B"


def trim(value: float, digits: int = 1) -> str:
    """A number with at most `digits` decimals and none that are zeros."""
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(part: float, whole: float) -> str:
    """`part` of `whole` in percent, or a dash where the whole is nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def plural(count: int, noun: str) -> str:
    """`1 cluster`, `2 clusters`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
