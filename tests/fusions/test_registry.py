"""Finding fusions by name."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings

import pytest

import fusions
from cfdsl.dsl.trace import UnusedArgument
from cfdsl.errors import TraceError


def test_names_and_find() -> None:
    assert {"attention_block", "rms_norm"} <= set(fusions.names())
    for name in fusions.names():
        found = fusions.find(name)
        assert (found.name, found.has_reference, found.has_example_inputs) == (name, True, True)
        assert found.doc


def test_every_dataflow_needs_all_that_it_declares() -> None:
    traced, apart = 0, set()
    for name in fusions.names():
        found = fusions.find(name)
        for values in itertools.product(*(found.choices.get(option, (default,)) for option, default in found.options.items())):
            with warnings.catch_warnings():
                warnings.simplefilter("error", UnusedArgument)
                try:
                    found.trace("llama-3.1-8b", **dict(zip(found.options, values)))
                    traced += 1
                except TraceError as error:
                    apart.add(error.message)
    assert apart == {"qkv='grid' does not go with out='atomic'."}
    assert traced >= 32


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
