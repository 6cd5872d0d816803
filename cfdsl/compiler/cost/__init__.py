"""The cost model: what a config moves and waits for, how long that takes, which one is chosen, and what speaks against the others."""

from cfdsl.compiler.cost.choice import (
    RESOLUTION,
    RESOLUTION_US,
    Candidate,
    Choice,
    choose,
    config_text,
    early_tiles,
    explain,
    near,
    tiles_in_flight,
    weighed,
)

__all__ = [
    "RESOLUTION", "RESOLUTION_US", "Candidate", "Choice", "choose", "config_text", "early_tiles", "explain", "near", "tiles_in_flight",
    "weighed",
]  # fmt: skip
