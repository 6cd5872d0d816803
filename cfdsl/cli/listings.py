"""`models`, `parts` and `fusions`: what the names on a command line may be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from cfdsl.cli.console import console, print_json
from cfdsl.cli.tables import table
from cfdsl.cli.units import held, trim

Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")]


def models(json: Json = False) -> None:
    """List the model presets."""
    from cfdsl.models import PRESETS

    if json:
        print_json({"models": {name: asdict(model) for name, model in PRESETS.items()}})
        return
    columns = ("model", ">hidden", ">heads", ">KV heads", ">head dim", ">group", ">layers", "QKV bias", ">rope theta")
    made = table(*columns, spare=("QKV bias", "group"))
    for name, m in PRESETS.items():
        sizes = (m.hidden, m.heads, m.kv_heads, m.head_dim, m.heads // m.kv_heads, m.layers)
        made.add_row(name, *(str(number) for number in sizes), "yes" if m.qkv_bias else "no", f"{m.rope_theta:,.0f}")
    console().print(made)
    console().print("\nAny other model: --model path/to/config.json, as Hugging Face writes it.")


def parts(json: Json = False) -> None:
    """List the parts that can be compiled for."""
    from cfdsl.compiler.parts import PARTS

    if json:
        print_json({"parts": {name: asdict(part) for name, part in PARTS.items()}})
        return
    made = table("part", "arch", ">SMs", ">shared memory/CTA", ">L2", ">GB/s", "resident clusters of 2/4/8/16 at 1 CTA per SM")
    for name, p in PARTS.items():
        resident = (p.max_clusters or {}).get(1, {})
        text = " / ".join(str(resident.get(ways, "?")) for ways in (2, 4, 8, 16)) if resident else "not known"
        made.add_row(name, p.arch, str(p.sms), held(p.smem_per_cta), held(p.l2_bytes), trim(p.hbm_gbps), text)
    console().print(made)


def fusions(json: Json = False) -> None:
    """List the shipped fusions and their options."""
    from cfdsl.cli.catalog import find_fusion, fusion_names

    found = [find_fusion(name) for name in fusion_names()]
    if json:
        rows = {fusion.name: {"doc": fusion.doc, "file": fusion.file, "options": dict(fusion.options)} for fusion in found}
        print_json({"fusions": rows})
        return
    made = table("fusion", "options", "what it is")
    for fusion in found:
        choices = getattr(fusion, "choices", {})
        options = [f"{name}={'|'.join(map(str, choices.get(name, (default,))))}" for name, default in fusion.options.items()]
        made.add_row(fusion.name, "\n".join(options), escape((fusion.doc or "").split("\n\n")[0].replace("\n", " ")))
    console().print(made)
