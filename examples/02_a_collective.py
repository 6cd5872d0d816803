"""A collective, and what happens without it: RMSNorm with its row spread over a cluster.

Each rank of a cluster holds a slice of the row, so it has only a term of the mean square: Partial(sum). `cluster_reduce` makes the value
of the terms. This script deletes that line from the graph's text, twice: once honestly, and once with forged placements.

    python examples/02_a_collective.py
"""

from __future__ import annotations

import re

import torch

import cfdsl as cf
from cfdsl.dsl.interpret import OracleError
from fusions.rms_norm import rms_norm

MODEL = cf.PRESETS["smollm2-135m"]
MESH = cf.Mesh(clusters=1, ranks=4)


@cf.fusion
def forgetful(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """The same spec as fusions/rms_norm.py, without its cluster_reduce."""
    x = cf.input("x", (batch, m.hidden))
    weight = cf.weight("weight", (m.hidden,))
    with cf.clusters(over=batch) as row:
        mine = cf.shard(x[row], dim=1)
        y = cf.rms_norm(mine, weight, m.norm_eps, mean_square=cf.mean_square(mine))
    return cf.outputs(y=y)


def without_reduce(graph: cf.Graph) -> cf.Graph:
    """`graph` with its cluster_reduce deleted: edited as text, and parsed again."""
    text = cf.to_text(graph)
    match = re.search(r"^(%\w+) = cluster_reduce\((%\w+)\).*\n", text, re.MULTILINE)
    assert match is not None
    result, term = match.groups()
    return cf.parse(re.sub(rf"{result}\b", term, text.replace(match.group(0), "")))


def forged(mutant: cf.Graph, honest: cf.PlacedGraph) -> cf.PlacedGraph:
    """The mutant with claims that nobody checked: the term is said to be what the reduced value was, the same on every rank."""
    kept = [node for node in honest.graph.nodes if node.op not in ("cluster_reduce", "item")]
    claims = {new: honest.placements[old] for new, old in zip(mutant.nodes, kept, strict=True)}
    term = next(node for node in mutant.nodes if node.op == "mean_square")
    reduced = next(node for node in honest.graph.nodes if node.op == "cluster_reduce")
    return cf.PlacedGraph(mutant, MESH, {**claims, term: honest.placements[reduced]})


def main() -> None:
    """The right one, the refused one, and the one that lies."""
    placed = cf.place(rms_norm.trace(MODEL), MESH)
    given = rms_norm.example_inputs(MODEL)
    want = rms_norm.reference(MODEL, given)["y"]
    got = cf.interpret(placed, given, round_outputs=False)
    print(cf.to_text(placed))
    print(f"With the collective: relative error {float((got.outputs['y'] - want).norm() / want.norm()):.1e}")
    for row in got.traffic.exchanges:
        print(f"  {row.op} moves {row.bytes} bytes over the cluster's network: {MESH.ranks} ranks x {MESH.ranks - 1} peers x 4 bytes")

    print("\nWithout it, placing the graph fails, at the line that needs the value:\n")
    try:
        cf.place(forgetful.trace(MODEL), MESH)
    except cf.CfdslError as mistake:
        print(f"{type(mistake).__name__}: {mistake}")

    print("\nWith placements that lie about it, the oracle, which gives each rank only what it holds, sees different ranks disagree:\n")
    try:
        cf.interpret(forged(without_reduce(placed.graph), placed), given)
    except OracleError as lie:
        print(f"OracleError: {lie}")

    kernel = cf.compile(rms_norm, MODEL, part="h100-sxm", cluster_size=MESH.ranks)
    print("\nIn the kernel, the collective is a push to every peer and a wait for everybody's bytes:\n")
    print("\n".join(line for line in kernel.source.splitlines() if re.search(r"cluster_reduce\.|exchange\.(arm|wait)", line)))
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9:
        on_gpu = rms_norm.example_inputs(MODEL, device="cuda")
        kernel(**on_gpu)
        want = rms_norm.reference(MODEL, on_gpu)["y"]
        print(f"\nOn the GPU: relative error {float((on_gpu['y'].double() - want).norm() / want.norm()):.1e}, rounded to bf16.")


if __name__ == "__main__":
    main()
