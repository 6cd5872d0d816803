"""Proofs about a plan, on the host: a mistake here is an error with the sum spelled out, and never a hung or corrupting GPU."""

from cfdsl.compiler.check.checks import CHECKS, MAX_TX, check, fits
from cfdsl.compiler.check.text import check_text

__all__ = ["CHECKS", "MAX_TX", "check", "check_text", "fits"]
