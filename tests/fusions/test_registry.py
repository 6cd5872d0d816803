"""Finding fusions by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fusions


def test_names_and_find() -> None:
    assert {"attention_block", "rms_norm"} <= set(fusions.names())
    for name in fusions.names():
        found = fusions.find(name)
        assert (found.name, found.has_reference, found.has_example_inputs) == (name, True, True)
        assert found.doc


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(KeyError, match="no fusion 'attention'; there are attention_block, "):
        fusions.find("attention")


def test_looking_loads_no_torch() -> None:
    code = """if True:
        import sys, fusions, cfdsl.dsl.interpret
        for name in fusions.names():
            fusions.find(name).trace("llama-2-7b")
        assert not {"torch", "cutlass"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)
