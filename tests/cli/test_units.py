from __future__ import annotations

import pytest

from cfdsl.cli import units


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (512, "512 B"), (1000, "1 KB"), (16384, "16.4 KB"), (201_326_592, "201.3 MB"), (3_000_000_000, "3 GB"), (1999, "2 KB")],
)
def test_what_moves_is_in_the_largest_decimal_unit_that_leaves_one(count: int, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1000, "1,000 B"), (1024, "1 KiB"), (16384, "16 KiB"), (50 << 20, "50 MiB"), (3 << 30, "3 GiB")]
)
def test_what_is_held_on_the_chip_is_in_binary_units(count: int, text: str) -> None:
    assert units.held(count) == text


def test_numbers_lose_decimals_that_are_zeros() -> None:
    assert [units.trim(value) for value in (1.0, 1.25, 100.0, 1234.5)] == ["1", "1.2", "100", "1,234.5"]


def test_percent_of_nothing_is_a_dash() -> None:
    assert units.percent(1, 0) == "-"
    assert units.percent(1, 4) == "25.0 %"


def test_plural() -> None:
    assert [units.plural(count, "CTA") for count in (0, 1, 2)] == ["0 CTAs", "1 CTA", "2 CTAs"]
