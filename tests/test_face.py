"""The face: `import cfdsl` is the whole language, and it is light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cfdsl as cf


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "transformers", "cutlass", "cuda", "tvm_ffi", "numpy", "matplotlib", "jinja2", "primitives"}

TRACE = """
import cfdsl as cf
@cf.fusion
def double(m, batch):
    x = cf.input("x", (batch, m.hidden))
    return cf.outputs(y=x + x)
cf.to_text(cf.place(double.trace("llama-2-7b"), cf.Mesh(4, 2)))
"""


LAZY = "import cfdsl; cfdsl.Config; dir(cfdsl); cfdsl.hf.patch"


@pytest.mark.parametrize("code", ["import cfdsl", "import cfdsl.errors, cfdsl.models", LAZY, TRACE])
def test_importing_and_tracing_load_nothing_heavy(code: str) -> None:
    assert not loaded_by(code) & HEAVY


def test_everything_in_all_is_there_and_in_dir() -> None:
    lazy = {"compile", "Kernel", "interpret", "oracle", "Oracle", "Config", "explain", "hf"}
    for name in set(cf.__all__) - lazy:
        assert getattr(cf, name) is not None
    assert set(cf.__all__) <= set(dir(cf))
    assert lazy <= set(cf.__all__)


def test_lazy_names_are_the_real_ones() -> None:
    from cfdsl.compiler.config import Config

    assert cf.Config is Config
    assert cf.Config is cf.__dict__["Config"]  # found directly from the second use on


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cfdsl' has no attribute 'compiles'"):
        cf.compiles  # type: ignore[attr-defined]


def test_the_version() -> None:
    assert cf.__version__ == "0.1.0"
