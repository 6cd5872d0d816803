"""compile(): from a fusion to a kernel, through the disk cache."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from cfdsl.compiler.config import Config
from cfdsl.compiler.cost.overrides import override_errors
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import KernelPlan
from cfdsl.dsl.fusion import Fusion, expect_fusion
from cfdsl.dsl.source import warn_user
from cfdsl.errors import CfdslError, ColdCompileInCapture, UnknownOption, attempt, raise_all
from cfdsl.models import ModelConfig, resolve
from cfdsl.runtime import artifacts, device, toolchain
from cfdsl.runtime.cache import Entry, KernelCache
from cfdsl.runtime.choices import KeptChoices
from cfdsl.runtime.kernel import Kernel

_FIELDS = tuple(field.name for field in dataclasses.fields(Config))

K = TypeVar("K", bound=Kernel)


class RegistersSpilled(UserWarning):
    """A kernel's threads have more to hold than registers: it is right, and slower than it need be."""


_kernels: dict[str, Kernel] = {}
_lock = threading.Lock()


class Lowered(Protocol):
    """What a kernel is made from (`cfdsl.compiler.stages.Lowered` is one): the plan, its generated source, and every stage's text."""

    @property
    def plan(self) -> KernelPlan: ...
    @property
    def source(self) -> str: ...
    @property
    def part(self) -> Part: ...
    @property
    def stages(self) -> Mapping[str, str]: ...


def compile(
    fusion: Fusion,
    model: ModelConfig | str,
    batch: int = 1,
    dtype: str = "bf16",
    *,
    part: Part | str | None = None,
    sizes: Mapping[str, int] | None = None,
    **settings: Any,
) -> Kernel:
    """Compile a fusion for a model (a ModelConfig, or the name of a preset), or take the kernel from the cache.

    `part`: what to compile for, by name or as a Part; default: the GPU at hand (NoTarget if there is none). `settings`: options of the
    fusion (its dataflows) and fields of Config that the cost model shall not choose. `sizes`: what the cost model shall assume for
    named sizes, such as {"tokens": 16384}. Equal requests give the same Kernel object. Raises one error with every mistake of the request.
    """
    kernel: Kernel = from_lowered(_lowered(fusion, model, batch, dtype, part, sizes, settings))
    if part is None:
        kernel.prepare()
    return kernel


def plan(
    fusion: Fusion, model: ModelConfig | str, batch: int = 1, dtype: str = "bf16", *, part: Part | str | None = None,
    sizes: Mapping[str, int] | None = None, **settings: Any,
) -> KernelPlan:  # fmt: skip
    """The plan, chosen and checked, of the kernel that `compile` makes of the same arguments. Nothing is compiled. Raises as `compile`."""
    return _lowered(fusion, model, batch, dtype, part, sizes, settings).plan


def _lowered(
    fusion: Fusion, model: ModelConfig | str, batch: int, dtype: str, part: Part | str | None, sizes: Mapping[str, int] | None,
    settings: Mapping[str, Any],
) -> Lowered:  # fmt: skip
    found, target, options, overrides = _asked(fusion, model, batch, dtype, part, settings)
    toolchain.default_arch(target.arch)  # before what follows: lowering imports the primitives, and with them CuTe DSL
    from cfdsl.compiler.stages import lower

    return lower(fusion, found, batch, dtype, target, overrides, options, sizes, KeptChoices(KernelCache()))


def best_options(
    fusion: Fusion, model: ModelConfig | str, batch: int = 1, dtype: str = "bf16", *, among: Sequence[Mapping[str, Any]],
    part: Part | str | None = None, sizes: Mapping[str, int] | None = None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Of several dataflows of a fusion, each given by its options, the one whose best config has the least estimated time; of
    those that the model cannot tell apart, the first.

    The other arguments are those of `compile`, which takes the result as keywords. A dataflow that no config fits is left out; if that is
    all of them, the first one's error is raised. Nothing is compiled.
    """
    from cfdsl.compiler.cost import near
    from cfdsl.compiler.settle import settle

    config, target, fixed, overrides = _asked(fusion, model, batch, dtype, part, settings)
    found: list[tuple[float, dict[str, Any]]] = []
    errors: list[CfdslError] = []
    for options in among:
        try:
            graph = fusion.trace(config, batch, dtype, **{**fixed, **options})
            chosen = settle(graph, target, overrides, dict(sizes) if sizes else None).chosen
        except CfdslError as error:
            errors.append(error)
            continue
        assert chosen.time_us is not None
        found.append((chosen.time_us, dict(options)))
    if not found:
        raise errors[0]
    best = min(us for us, _ in found)
    return next(options for us, options in found if near(us, best))


def _asked(
    fusion: Fusion, model: ModelConfig | str, batch: int, dtype: str, part: Part | str | None, settings: Mapping[str, Any]
) -> tuple[ModelConfig, Part, dict[str, Any], dict[str, Any]]:
    """A request, looked up: model, part, options of the fusion, fields of the config. Raises one error with everything that is wrong."""
    expect_fusion(fusion)
    options = {name: value for name, value in settings.items() if name in fusion.options}
    overrides = {name: value for name, value in settings.items() if name in _FIELDS and name not in options}
    errors = [*unknown_settings(fusion, settings, "config", _FIELDS), *fusion.request_errors(batch, dtype, options)]
    errors += override_errors(overrides)
    found = attempt(errors, resolve, model)
    target = attempt(errors, device.target, part)
    raise_all(errors)
    return found, target, options, overrides


def unknown_settings(fusion: Fusion, settings: Mapping[str, Any], what: str, fields: Sequence[str]) -> list[CfdslError]:
    """UnknownOption for each setting that is neither an option of the fusion nor one of the `fields` of the config or the mesh (`what`)."""
    known = f"{', '.join(fusion.options) or 'none'}; fields of the {what} are: {', '.join(fields)}"
    unknown = {name: value for name, value in settings.items() if name not in (*fusion.options, *fields)}
    return [UnknownOption(fusion=fusion.name, option=name, value=repr(value), known=known) for name, value in unknown.items()]


def from_lowered(lowered: Lowered, kind: type[K] = Kernel) -> K:  # type: ignore[assignment]
    """The kernel of a lowered fusion, a `kind`: the one made before in this process, else from the disk cache, else compiled now."""
    key = toolchain.cache_key(lowered.source, lowered.plan, lowered.part.arch)
    with _lock:
        if key not in _kernels:
            _kernels[key] = _make(lowered, key, kind)
        kernel: Kernel = _kernels[key]
        assert isinstance(kernel, kind)
        return kernel


def _make(lowered: Lowered, key: str, kind: type[K]) -> K:
    if device.capturing():
        raise ColdCompileInCapture(kernel=lowered.plan.name)
    cache = KernelCache()
    source = cache.source(lowered.plan.name, lowered.source)
    cold = False
    entry = cache.find(key, warn=False)
    if entry is None:
        with cache.lock(key):
            entry = cache.find(key)  # another process may have made it while this one waited
            if entry is None:
                cold = True
                entry = _compile(cache, lowered, key)
    return kind(lowered, entry, source, key, cold=cold)


def _compile(cache: KernelCache, lowered: Lowered, key: str) -> Entry:
    plan = lowered.plan
    symbol = f"cfdsl_{key[:16]}"
    built = toolchain.build(cache.source(plan.name, lowered.source), plan, lowered.part.arch, symbol)
    binary = artifacts.read_cubin(built.cubin)
    meta = {
        "name": plan.name, "model": plan.model, "arch": lowered.part.arch, "symbol": symbol, "kernel": binary.kernel,
        "registers": binary.registers, "stack": binary.stack, "spills": artifacts.spill_bytes(built.log) if binary.stack else 0,
        "compile_seconds": round(built.seconds, 3), "log": built.log,
    }  # fmt: skip
    if meta["spills"]:
        cure = "ctas_per_sm=1 leaves it twice as many" if plan.config.ctas_per_sm > 1 else "more warps leave it less to hold"
        text = f"{plan.name} spills: each thread keeps {meta['spills']} bytes beside its {binary.registers} registers, in memory; {cure}"
        warn_user(text, RegistersSpilled)
    return cache.add(key, {"object": built.object, "ptx": built.ptx, "cubin": built.cubin}, meta)
