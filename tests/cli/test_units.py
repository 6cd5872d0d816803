from __future__ import annotations

import pytest

from cfdsl.cli import units


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (512, "512 B"), (1024, "1 KB"), (1536, "1.5 KB"), (16384, "16 KB"), (5 << 20, "5 MB"), (3 << 30, "3 GB"), (2047, "2 KB")],
)
def test_sizes_are_in_the_largest_unit_that_leaves_one(count: int, text: str) -> None:
    assert units.size(count) == text


def test_numbers_lose_decimals_that_are_zeros() -> None:
    assert [units.trim(value) for value in (1.0, 1.25, 100.0, 1234.5)] == ["1", "1.2", "100", "1,234.5"]


def test_percent_of_nothing_is_a_dash() -> None:
    assert units.percent(1, 0) == "-"
    assert units.percent(1, 4) == "25.0 %"


def test_plural() -> None:
    assert [units.plural(count, "CTA") for count in (0, 1, 2)] == ["0 CTAs", "1 CTA", "2 CTAs"]
