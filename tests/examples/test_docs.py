"""The documents are true: specs and errors on their pages, commands, links, names, environment variables."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cfdsl as cf
from cfdsl.compiler.cost import choose
from cfdsl.compiler.parts import part_named
from cfdsl.compiler.schedule import schedule

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OWN = [page for page in PAGES if page.name == "README.md" or page.parent.name == "docs"]
HEADER = "import cfdsl as cf\n\n\n"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [body for name, body in FENCE.findall(text) if name == language]


def load(spec: str, folder: Path) -> cf.Fusion:
    """The one fusion of a page's block, from a file spec.py."""
    file = folder / "spec.py"
    file.write_text(HEADER + spec)
    found = importlib.util.spec_from_file_location("spec", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    (fusion,) = (value for value in vars(module).values() if isinstance(value, cf.Fusion))
    return fusion


# ---- docs/writing-a-fusion.md: every spec, and what is said of it -------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """The spec above a mark, what it is lowered with, and the error that the page shows (None: it lowers)."""

    spec: str
    settings: dict[str, Any]
    error: str | None


def cases(text: str) -> Iterator[Case]:
    """`<!-- checked: {...} -->` stands above an error, `<!-- lowers: {...} -->` above none; both speak of the last spec before them."""
    for mark in re.finditer(r"<!-- (checked|lowers): (\{[^\n]*\}) -->\n(?:```text\n(.*?)\n```)?", text, re.DOTALL | re.MULTILINE):
        spec = [body for body in blocks(text[: mark.start()], "python") if body.startswith("@cf.fusion")][-1]
        yield Case(spec, json.loads(mark.group(2)), mark.group(3) if mark.group(1) == "checked" else None)


def complaint(case: Case, folder: Path) -> str | None:
    """What is said when the spec is traced, configured, placed and scheduled for llama-2-7b, its file being called spec.py."""
    fusion, settings = load(case.spec, folder), dict(case.settings)
    try:
        graph = cf.verify(fusion.trace("llama-2-7b", settings.pop("batch", 1)))
        config = choose(graph, part_named("h100-sxm"), settings).config
        schedule(cf.place(graph, cf.Mesh(config.clusters, config.cluster_size)), config)
    except cf.CfdslError as error:
        return f"{type(error).__name__}: {error}".replace(f"{folder}/", "")
    return None


WRITING = (ROOT / "docs" / "writing-a-fusion.md").read_text() if (ROOT / "docs" / "writing-a-fusion.md").exists() else ""


@pytest.mark.parametrize("case", list(cases(WRITING)), ids=lambda case: str(case.error or "lowers").partition(":")[0])
def test_errors_on_the_page_are_the_real_ones(case: Case, tmp_path: Path) -> None:
    assert complaint(case, tmp_path) == case.error


def test_the_page_has_errors_and_successes() -> None:
    found = [case.error is None for case in cases(WRITING)]
    assert found.count(False) >= 5
    assert found.count(True) >= 2


# ---- README ------------------------------------------------------------------------------------------------------------------------


def test_quick_start_is_the_two_lines() -> None:
    lines = [line for body in blocks((ROOT / "README.md").read_text(), "sh") for line in body.splitlines() if line.startswith("pip")]
    assert lines == [
        "pip install -c constraints.txt -e . && python -m cfdsl compile attention_block --model llama-2-7b",
        'pip install -c constraints.txt -e ".[test]" && python -m pytest',
    ]


def structure(graph: cf.Graph) -> tuple[Any, ...]:
    """A graph without its lines and the order of its statements: what is computed from what."""
    seen: dict[cf.Node, int] = {}
    table: dict[Any, int] = {}

    def number(node: cf.Node) -> int:
        if node not in seen:
            key = (node.op, tuple(number(arg) for arg in node.args), node.attrs, node.types)
            seen[node] = table.setdefault(key, len(table))
        return seen[node]

    ends = [(name, number(node)) for name, node in graph.outputs], [number(node) for node in graph.effects]
    return ends, sorted(table, key=lambda key: table[key]), graph.over, graph.dtype


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3.1-8b", "smollm2-135m"])
def test_the_spec_in_the_readme_is_the_shipped_one(model: str, tmp_path: Path) -> None:
    """The page shows the default dataflow, without options and biases: the same graph."""
    from fusions.attention_block import attention_block

    (spec,) = (body for body in blocks((ROOT / "README.md").read_text(), "python") if body.startswith("@cf.fusion"))
    shown = load(spec, tmp_path)
    assert shown.name == attention_block.name
    assert structure(shown.trace(model)) == structure(attention_block.trace(model))


def test_every_op_of_the_language_is_compiled() -> None:
    """An op without a rule is one that its users evaluate."""
    from cfdsl.compiler.lowering import rules
    from cfdsl.dsl.type_rules import TYPE_RULES

    assert set(TYPE_RULES) == {*rules.RULES, *rules.WHERE_NEEDED}


@pytest.mark.compile
def test_the_generated_code_in_the_readme_is_what_is_generated() -> None:
    """Adjacent lines of the source, as `show --stage source` prints it; line numbers of the spec may differ."""
    from cfdsl.compiler.stages import lower
    from fusions.attention_block import attention_block

    (shown,) = (body for body in blocks((ROOT / "README.md").read_text(), "python") if body.startswith("# src["))
    source = lower(attention_block, cf.PRESETS["llama-2-7b"], 1, "bf16", part_named("h100-sxm")).source
    plain = [re.sub(r"(# src\[\w+\.py):\d+", r"\1", "\n".join(line.strip() for line in text.splitlines())) for text in (shown, source)]
    assert plain[0] in plain[1], "paste the lines that `show --stage source` prints now into README.md"


# ---- all pages ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        aim = (page.parent / path) if path else page
        assert aim.exists(), target
        if anchor:
            heads = [re.sub(r"[^\w -]", "", head).strip().lower() for head in re.findall(r"^#+ (.*)$", aim.read_text(), re.M)]
            assert anchor in {head.replace(" ", "-") for head in heads}, target


def commands() -> list[str]:
    """Every `python -m cfdsl ...` line of the pages' shell blocks, without what comes before it on its line."""
    lines = [line for page in OWN for body in blocks(page.read_text(), "sh") for line in body.splitlines()]
    return sorted({line[line.index("python -m cfdsl") :] for line in lines if "python -m cfdsl" in line})


@pytest.mark.parametrize("command", commands())
def test_commands_take_these_options(command: str) -> None:
    """Parsed by the real command line, down to the choices of each option, and not run."""
    import typer

    from cfdsl.cli.app import app

    group = typer.main.get_command(app)
    name, *arguments = shlex.split(command)[3:]
    found = group.get_command(None, name)  # type: ignore[attr-defined, arg-type]
    assert found is not None, name
    found.make_context(name, list(arguments))


@pytest.mark.parametrize("page", OWN, ids=lambda page: page.name)
def test_names_of_the_language_exist(page: Path) -> None:
    used = set(re.findall(r"\bcf\.(\w+)", page.read_text()))
    assert used <= set(dir(cf)), used - set(dir(cf))


@pytest.mark.parametrize("page", OWN, ids=lambda page: page.name)
def test_errors_that_are_named_exist(page: Path) -> None:
    """`SomeError` in code style, and the class at the head of an error text."""
    from cfdsl import errors
    from cfdsl.dsl.interpret import OracleError
    from cfdsl.runtime.cache import DamagedCacheEntry

    known = {*vars(errors), OracleError.__name__, DamagedCacheEntry.__name__}
    text = page.read_text()
    said = set(re.findall(r"^([A-Z]\w+): ", "\n".join(blocks(text, "text")), re.M))
    ends = r"(Error|Mismatch|Lowered|Resident|Unsupported|Target|Capture|Divide|Failed|Reduce)$"
    said |= {name for name in re.findall(r"`([A-Z]\w+)`", text) if re.search(ends, name)} - {"ClusterReduce"}
    assert said <= known, said - known


def test_every_environment_variable_is_documented() -> None:
    code = [path for folder in ("cfdsl", "primitives", "fusions", "examples") for path in (ROOT / folder).rglob("*.py")]
    code += [ROOT / "tests" / "conftest.py"]
    read = {name for path in code for name in re.findall(r"(?:environ(?:\.get|\.setdefault)?|getenv)[\[(]\"(\w+)\"", path.read_text())}
    assert {"CFDSL_CACHE_DIR", "CUTE_DSL_ARCH", "HYPOTHESIS_PROFILE", "CI"} <= read
    page = (ROOT / "docs" / "environment.md").read_text()
    assert {name for name in read if f"`{name}`" not in page} == set()
