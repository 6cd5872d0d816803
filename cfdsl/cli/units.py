"""How sizes and times are written, the same in tables and in pictures."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least one: 512 B, 16 KB, 1.5 MB, 201.3 MB (1 KB = 1024 B)."""
    for unit, scale in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if count >= scale:
            return f"{trim(count / scale)} {unit}"
    return f"{trim(count)} B"


def trim(value: float, digits: int = 1) -> str:
    """A number with at most `digits` decimals and none that are zeros."""
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def microseconds(value: float | None) -> str:
    """A time in us, or a dash where there is none."""
    return "-" if value is None else f"{value:,.1f} us"


def percent(part: float, whole: float) -> str:
    """`part` of `whole` in percent, or a dash where the whole is nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def plural(count: int, noun: str) -> str:
    """`1 cluster`, `2 clusters`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
