"""Vector weights are asked for ahead of the wait before the fragment that takes them, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plans import block, ffn, layer, plan_graph, step_of, steps_of, with_step

import cfdsl as cf
from cfdsl.compiler.check import check
from cfdsl.compiler.emit import emit
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.plan import KernelPlan
from cfdsl.errors import PlanError

LAYER = layer("llama-3.2-1b", 64, 2, splits=8)


def fetches(plan: KernelPlan) -> dict[str, int]:
    """Weight -> the step that asks for it."""
    return {plan.steps[i].params["tree"].name: i for i in steps_of(plan, "fetch_fragment")}


def test_the_first_norm_is_asked_for_before_the_kernel_ahead_has_finished() -> None:
    for plan in (block(), ffn(), LAYER):
        assert fetches(plan)["norm"] == 0
        assert plan.early_steps == 1
        source = emit(plan)
        assert source.index("norm_raw = frag.fetch(norm, ") < source.index("cute.arch.griddepcontrol_wait()\n        phase")
        assert "frag.widen(norm_raw)" in source


def test_the_second_norm_is_asked_for_before_the_product_ahead_of_its_barrier() -> None:
    at = fetches(LAYER)["ffn_norm"]
    following = [step.op for step in LAYER.steps[at + 1 :]]
    assert following[:2] == ["gemv", "sync"]
    assert LAYER.steps[at + 1].params["part"] == "wo_terms"
    barriers = [i for i in steps_of(LAYER, "grid_barrier") if i > at]
    taken = next(i for i, step in enumerate(LAYER.steps) if "tree" in step.params and "ffn_norm_raw" in str(step.params["tree"]))
    assert taken > barriers[0], "else there was nothing to hide it behind"


def test_products_that_one_loop_eats_stay_together() -> None:
    """Two norms, the second behind a barrier that three products lead up to: the fetch comes before the first of them."""

    @cf.fusion
    def twice(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        n = cf.rms_norm(x, cf.weight("first", (m.hidden,)), m.norm_eps)
        a, b = (cf.linear(n, cf.weight(name, (m.hidden, m.hidden)), shard="out") for name in ("wa", "wb"))
        h = cf.grid_gather(a + b)
        n = cf.rms_norm(h, cf.weight("second", (m.hidden,)), m.norm_eps)
        return cf.outputs(y=cf.linear(n, cf.weight("wc", (m.hidden, m.hidden)), shard="out"))

    plan = plan_graph(twice.trace("llama-3.2-1b"), 64, 2)
    check(plan, H100_SXM)
    at = fetches(plan)["second"]
    assert [step.op for step in plan.steps[at : at + 3]] == ["fetch_fragment", "gemv", "gemv"]
    assert plan.steps[at - 1].op == "fragment"


def test_what_is_fetched_is_a_weight_and_in_its_place() -> None:
    """An input may be the predecessor's work: asking for it early is an error, and so is a fetch past the weight's end."""
    good = block()
    x = next(e for e in good.steps[step_of(good, "fragment")].params["tree"].walk() if e.kind == "leaf")
    early = with_step(good, 0, lambda step: replace(step, params={**step.params, "tree": x}))
    with pytest.raises(PlanError, match="step 0 runs before the kernel ahead has finished"):
        check(early, H100_SXM)
    wide = with_step(good, 0, lambda step: replace(step, params={**step.params, "tiles": replace(step.params["tiles"], cols=8192)}))
    with pytest.raises(PlanError, match="norm is used past its end in fetch_fragment"):
        check(wide, H100_SXM)
