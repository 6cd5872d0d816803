from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from runner import run

from cfdsl.models import PRESETS

ON_H100 = ("--part", "h100-sxm")


def test_listings_name_everything() -> None:
    assert set(run("models", "--json").json["models"]) == set(PRESETS)
    assert all(name in run("models").out for name in PRESETS)
    assert "h100-sxm" in run("parts", "--json").json["parts"]
    assert "66 / 30 / 15 / 7" in run("parts").out
    assert run("fusions", "--json").json["fusions"]["attention_block"]["options"]["out"] == "gather"
    assert "out=gather|atomic" in run("fusions").out


def test_explain_shows_the_table_and_the_reasons() -> None:
    done = run("explain", "attention_block", "--model", "llama-2-7b", *ON_H100)
    assert done.code == 0
    assert "32 x 2" in done.out
    assert "not resident: 32 clusters of 4 at 1 CTA/SM, h100-sxm holds 30" in " ".join(done.out.replace("│", " ").split())
    record = run("explain", "attention_block", "--model", "llama-2-7b", *ON_H100, "--json").json
    assert set(record["choice"]) == {"why", "given", "fit", "refused"}
    assert record["part"]["from"] == "given"


def test_lines_fit_into_120_columns() -> None:
    done = run("explain", "attention_block", "--model", "llama-2-7b", *ON_H100)
    assert max(len(line) for line in done.out.splitlines()) <= 120


def test_overrides_reach_the_cost_model() -> None:
    args = ("--cluster-size", "4", "--no-pdl", "--json")
    record = run("explain", "attention_block", "--model", "llama-2-7b", *ON_H100, *args).json
    assert record["choice"]["given"] == {"cluster_size": 4, "pdl": False}
    assert {row["config"]["cluster_size"] for row in record["choice"]["fit"]} == {4}


def test_explain_shows_the_table_where_nothing_fits_too() -> None:
    done = run("explain", "ffn_block", "--model", "llama-3.1-8b", *ON_H100, "--ctas-per-sm", "2")
    assert done.code == 1
    assert "fit, best first" not in done.out
    assert "the vector that rows of w_down meet" in " ".join(done.out.replace("│", " ").split())
    assert done.err.startswith("error: NoLegalConfig: ffn_block has no config that runs on h100-sxm with ctas_per_sm=2:")
    mistaken = run("explain", "attention_block", "--model", "llama-2-7b", *ON_H100, "--clusters", "64", "--splits", "5")
    assert (mistaken.code, mistaken.out) == (1, "")  # a mesh that there is not: no config to show


def test_show_prints_the_choice_and_the_proof() -> None:
    chosen = run("show", "rms_norm", "--model", "llama-2-7b", *ON_H100, "--stage", "config", "--cluster-size", "4").out
    assert "chosen of " in chosen
    assert "\ncluster_size   4\n" in chosen
    proved = run("show", "rms_norm", "--model", "llama-2-7b", *ON_H100, "--stage", "check").out
    assert proved.startswith("proved of rms_norm on h100-sxm by ")


def test_show_says_what_it_can_be_told() -> None:
    done = run("show", "rms_norm", "--model", "llama-2-7b", *ON_H100)
    assert done.code == 1
    assert done.err.startswith("error: NothingToShow: `show` was not told what of the compilation to show.\n  remedy: add --stage STAGE (")


def test_explain_says_what_compile_refuses() -> None:
    done = run("explain", "attention_block", "--model", "llama-2-7b", *ON_H100, "--batch", "2")
    assert done.code == 1
    assert "fit, best first" in done.out
    assert done.err.startswith("error: NotLowered: linear cannot be compiled: batch 2 needs tensor cores; only batch 1 is lowered.")


def test_a_command_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    done = run("compyle", "rms_norm")
    assert done.code == 1
    assert done.err == (
        "error: UnknownName: there is no command named 'compyle'.\n"
        "  remedy: use one of compile, show, explain, bench, tune, generate, models, parts, fusions, cache; "
        "`python -m cfdsl --help` lists them.\n"
    )


def test_a_mistake_is_a_message_and_exit_code_1() -> None:
    done = run("explain", "attention_block", "--model", "llama-2-70b", *ON_H100)
    assert done.code == 1
    assert done.err.startswith("error: UnknownModel: there is no model 'llama-2-70b'")
    assert "Traceback" not in done.err
    assert done.out == ""


def test_debug_raises_wherever_it_stands() -> None:
    from cfdsl.errors import UnknownModel

    for args in (("--debug", "explain", "rms_norm", "--model", "x"), ("explain", "rms_norm", "--model", "x", "--debug")):
        with pytest.raises(UnknownModel):
            run(*args)


def test_a_config_that_cannot_be_is_refused_with_reasons() -> None:
    done = run("explain", "attention_block", "--model", "llama-2-7b", *ON_H100, "--cluster-size", "3")
    assert done.code == 1
    assert "ClusterSizeUnsupported" in done.err


def test_bench_needs_a_gpu() -> None:
    done = run("bench", "attention_block", "--model", "llama-2-7b", *ON_H100)
    assert done.code == 1
    assert done.err.startswith("error: NeedsGpu: `python -m cfdsl bench` measures on a GPU, and this machine has none that torch can use.")


@pytest.mark.parametrize("text", ["", "1024,x", "-1"])
def test_bench_lengths_are_numbers(text: str) -> None:
    done = run("bench", "attention_block", "--model", "llama-2-7b", *ON_H100, f"--kv-len={text}")
    assert done.code == 1
    assert "BadOption: --kv-len" in done.err


NOWHERE = ("--json", "nowhere/a.json")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("bench", "rms_norm", "--model", "smollm2-135m"), (*NOWHERE, "--plot", "nowhere/a.png", "--trace", "nowhere/a.json")),
        (("bench", "decode", "--model", "smollm2-135m"), (*NOWHERE, "--trace", "nowhere/a.json")),
        (("bench", "collectives"), (*NOWHERE, "--plot", "nowhere/a.png")),
        (("tune", "rms_norm", "--model", "smollm2-135m"), NOWHERE),
        (("generate", "--model", "smollm2-135m", "--prompt", "a"), ("--trace", "nowhere/a.json")),
    ],
    ids=["bench", "decode", "collectives", "tune", "generate"],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(command: tuple[str, ...], options: tuple[str, ...]) -> None:
    done = run(*command, *options)
    assert done.code == 1
    for option, file in zip(options[::2], options[1::2], strict=True):
        assert f"{option} got '{file}', which is not a file in a folder that exists." in done.err
    assert "NeedsGpu" not in done.err


def test_cache_shows_and_clears(cache_dir: Path) -> None:
    assert run("cache", "--json").json == {"path": str(cache_dir), "kernels": 0, "sources": 0, "bytes": 0, "cleared": False}
    (cache_dir / "kernel" / "k1").mkdir(parents=True)
    (cache_dir / "kernel" / "k1" / "meta.json").write_text("{}")
    (cache_dir / "source").mkdir()
    (cache_dir / "source" / "cfdsl_a_1.py").write_text("x = 1\n")
    (cache_dir / "mine.txt").write_text("not ours")
    assert "1 kernel, 1 source, 16 B" in run("cache").out
    assert run("cache", "--clear").code == 0
    assert sorted(path.name for path in cache_dir.iterdir()) == ["mine.txt"]


def test_show_wants_a_stage_or_a_picture() -> None:
    done = run("show", "rms_norm", "--model", "llama-2-7b", *ON_H100)
    assert done.code == 1
    assert "--picture OUT.svg" in done.err


@pytest.mark.parametrize("name", ["out.png", "no/such/folder/out.svg"])
def test_pictures_go_into_svg_files(name: str, tmp_path: Path) -> None:
    done = run("show", "rms_norm", "--model", "llama-2-7b", *ON_H100, "--picture", str(tmp_path / name))
    assert done.code == 1
    assert "BadOption: --picture" in done.err


def test_the_command_line_loads_neither_torch_nor_cutlass() -> None:
    import subprocess

    code = "import sys; from cfdsl.cli.app import main; print(sorted({'torch', 'cutlass', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.compile
@pytest.mark.parametrize("stage", ["traced", "placed", "plan", "source"])
def test_show_prints_stages(stage: str) -> None:
    done = run("show", "attention_block", "--model", "llama-2-7b", *ON_H100, "--stage", stage)
    assert done.code == 0
    assert "attention_block" in done.out
    assert "\x1b" not in done.out  # piped: plain


@pytest.mark.compile
@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3.1-8b", "smollm2-135m"])
@pytest.mark.parametrize("options", [(), ("-o", "qkv=rows"), ("-o", "qkv=split_k", "-o", "out=atomic")])
def test_pictures_of_real_plans_show_all_exchanges_and_streams(model: str, options: tuple[str, ...], tmp_path: Path) -> None:
    from cfdsl.cli.build import lower_for
    from cfdsl.cli.request import resolve

    path = tmp_path / "out.svg"
    assert run("show", "attention_block", "--model", model, *ON_H100, *options, "--picture", str(path)).code == 0
    root = ElementTree.parse(path).getroot()
    plan = lower_for(resolve(fusion="attention_block", model=model, part="h100-sxm", option=list(options[1::2]))).plan
    for key, wanted in (("exchange", plan.exchanges), ("stream", plan.streams), ("buffer", plan.buffers)):
        assert {element.get(f"data-{key}") for element in root.iter()} - {None} == {record.name for record in wanted}


@pytest.mark.compile
@pytest.mark.parametrize(("fusion", "model"), [("attention_block", "smollm2-135m"), ("rms_norm", "llama-2-7b")])
def test_compile_end_to_end(fusion: str, model: str, cache_dir: Path) -> None:
    done = run("compile", fusion, "--model", model, *ON_H100, "--json")
    assert done.code == 0
    record = done.json
    assert set(record) == {
        "fusion", "model", "batch", "dtype", "kv_len", "options", "part", "graph", "config", "choice", "traffic", "oracle", "kernel", "gpu",
        "left_out",
    }  # fmt: skip
    assert record["oracle"]["ok"]
    assert record["kernel"]["spills"] == 0
    assert 0 < record["kernel"]["registers"] <= 255
    assert not record["kernel"]["cached"]
    for name in ("source", "ptx", "cubin"):
        assert Path(record["kernel"]["files"][name]).is_relative_to(cache_dir)
        assert Path(record["kernel"]["files"][name]).stat().st_size > 0
    assert record["gpu"] is None


@pytest.mark.compile
def test_compile_says_which_part_it_chose_and_that_there_is_no_gpu(cache_dir: Path) -> None:
    done = run("compile", "rms_norm", "--model", "smollm2-135m")
    assert done.code == 0
    assert "There is no GPU here: compiling for h100-sxm, the default of --part." in done.out
    for title in ("Placed graph", "Config", "Traffic and time", "Oracle against the PyTorch reference", "Kernel", "On the GPU"):
        assert title in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 120
