"""One class per mistake: a fixed message, the user's own line, and the remedy.

Every class is a keyword-only record: its fields fill the two fixed sentences `_says` and `_remedy`. `str(error)` is the message, then
`file:line: code` of the line that the user wrote, then the remedy. Independent mistakes are collected and raised together as `Errors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Protocol


class SourceLine(Protocol):
    """What an error needs to know of a place in the user's code (`cfdsl.dsl.graph.Src` is one)."""

    @property
    def file(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def code(self) -> str: ...


@dataclass(eq=False, kw_only=True)
class CfdslError(Exception):
    """Base of every error that cfdsl raises on purpose. `src` is the user's line, where there is one."""

    src: SourceLine | None = None

    _says: ClassVar[str] = "something is wrong"
    _remedy: ClassVar[str] = ""

    @property
    def message(self) -> str:
        """What is wrong, in one sentence."""
        return self._says.format(**self._fields())

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self._remedy.format(**self._fields())

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        lines = [self.message]
        if self.src is not None:
            lines.append(f"  {self.src.file}:{self.src.line}: {self.src.code}".rstrip())
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._fields()), ()


@dataclass(eq=False, kw_only=True)
class Errors(CfdslError):
    """Several independent mistakes, reported at once. `errors` lists them."""

    errors: tuple[CfdslError, ...]

    @property
    def message(self) -> str:
        text = [f"{len(self.errors)} mistakes:"]
        for number, error in enumerate(self.errors, 1):
            text.append(f"{number}. {type(error).__name__}: {error}".replace("\n", "\n   "))
        return "\n".join(text)


def raise_all(errors: Iterable[CfdslError]) -> None:
    """Raise nothing, the one mistake, or one `Errors` with all of them (nested groups flattened, repeats dropped)."""
    flat: dict[str, CfdslError] = {}
    for error in errors:
        for single in error.errors if isinstance(error, Errors) else (error,):
            flat.setdefault(f"{type(single).__name__}: {single}", single)
    if len(flat) == 1:
        raise next(iter(flat.values()))
    if flat:
        raise Errors(errors=tuple(flat.values()))


# ---- the spec: tracing -------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class TraceError(CfdslError):
    """The language is used in a way that cannot be traced."""

    problem: str
    advice: str
    _says = "{problem}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class ArgumentError(CfdslError):
    """An argument of a call (of the language, or of a compiled kernel) is not what it must be."""

    argument: str
    expected: str
    got: str
    advice: str = ""
    _says = "argument {argument!r} must be {expected}, got {got}."

    @property
    def remedy(self) -> str:
        return f"{self.advice or f'pass {self.argument!r} as {self.expected}'}."


@dataclass(eq=False, kw_only=True)
class DuplicateName(CfdslError):
    """Two different inputs, weights, caches or outputs have one name."""

    name: str
    first: str
    second: str
    _says = "the name {name!r} is taken: first {first}, now {second}."
    _remedy = "give one of them another name; the names become the kernel's arguments."


@dataclass(eq=False, kw_only=True)
class UnknownOption(CfdslError):
    """A dataflow option that the fusion does not have, or a value that the option does not take."""

    fusion: str
    option: str
    value: str
    known: str
    _says = "the fusion {fusion} has no option {option}={value}."
    _remedy = "its options are: {known}."


@dataclass(eq=False, kw_only=True)
class ShapeMismatch(CfdslError):
    """The shapes of an op's arguments do not go together."""

    op: str
    expected: str
    got: str
    _says = "{op} expects {expected}, got {got}."
    _remedy = "check the declared shapes; weights are (out, in), as Hugging Face stores them."


@dataclass(eq=False, kw_only=True)
class DtypeMismatch(CfdslError):
    """An argument has a dtype that the op does not take."""

    op: str
    argument: str
    expected: str
    got: str
    _says = "{op} expects {argument} of dtype {expected}, got {got}."
    _remedy = "declare {argument} with such a dtype."


@dataclass(eq=False, kw_only=True)
class TextSyntax(CfdslError):
    """A line of a graph's text cannot be read."""

    line: int
    text: str
    problem: str
    _says = "line {line} of the graph's text cannot be read: {problem}: {text!r}."
    _remedy = "write one node per line, as to_text prints it: %name = op(%argument, attribute=value) : dtype[shape]."


@dataclass(eq=False, kw_only=True)
class InvalidGraph(CfdslError):
    """A node of a graph breaks the rule of its op (a rewrite or an edited text made it so)."""

    op: str
    problem: str
    _says = "the graph is not valid at {op}: {problem}."
    _remedy = "every node must follow the rule of its op; build graphs with a traced fusion."


# ---- the spec: placements ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class NeedsReduce(CfdslError):
    """A Partial is used where the value itself is needed."""

    op: str
    argument: str
    placement: str
    axis: str
    collective: str
    _says = "{op} needs a value, but {argument} is {placement} on the {axis} axis: each holder has only a term of it."
    _remedy = "needs {collective}: call {collective} on {argument} before this line."


@dataclass(eq=False, kw_only=True)
class ShardDoesNotDivide(CfdslError):
    """A dimension cannot be cut into the slices that a placement asks for."""

    op: str
    dim: int
    size: int | str
    parts: int
    axis: str
    advice: str = "choose a number that divides it, or shard another dimension"
    _says = "{op} cannot shard dimension {dim} of size {size} over {parts} {axis}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class WrongCollective(CfdslError):
    """A collective is called on a value that it cannot move."""

    call: str
    moves: str
    argument: str
    placement: str
    legal: str
    _says = "{call} moves {moves}, but {argument} is placed {placement}."
    _remedy = "{legal}."


@dataclass(eq=False, kw_only=True)
class PlacementMismatch(CfdslError):
    """Two values that must be placed alike are not, or a value is sharded along a dimension that the op needs whole."""

    op: str
    problem: str
    legal: str
    _says = "{op}: {problem}."
    _remedy = "{legal}."


@dataclass(eq=False, kw_only=True)
class ClustersDoNotDivide(CfdslError):
    """The number of clusters (with splits: of groups of clusters) does not go with the number of work units."""

    over: int
    clusters: int
    splits: int = 1

    @property
    def message(self) -> str:
        return f"{self.over} work units cannot be spread over {self.clusters} {self._holders}: neither number divides the other."

    @property
    def remedy(self) -> str:
        return f"use a number of {self._holders} that divides {self.over}, or a multiple of {self.over}."

    @property
    def _holders(self) -> str:
        return "clusters" if self.splits == 1 else f"groups of {self.splits} clusters"


@dataclass(eq=False, kw_only=True)
class NothingToSplit(CfdslError):
    """Several clusters are to share a unit by splitting its tokens, but the fusion does not split them."""

    fusion: str
    splits: int
    _says = "{splits} clusters share a unit, but {fusion} has no attend(..., shard='tokens', across='all'): they would repeat its work."
    _remedy = "use splits=1, or a dataflow that splits tokens over clusters (of attention_block: qkv='grid')."


# ---- models and hardware -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class ClusterSizeUnsupported(CfdslError):
    """A cluster size that the hardware, or the part at hand, does not have."""

    size: int
    supported: Sequence[int] = (1, 2, 4, 8, 16)
    _says = "a cluster of {size} CTAs is not supported."

    @property
    def remedy(self) -> str:
        return f"use a cluster size of {_list(self.supported)}."


@dataclass(eq=False, kw_only=True)
class HeadDimUnsupported(CfdslError):
    """The kernels have no code for this head dimension."""

    head_dim: int
    supported: Sequence[int] = (64, 128)
    _says = "head_dim {head_dim} is not supported."

    @property
    def remedy(self) -> str:
        return f"use a model with head_dim {_list(self.supported)}."


@dataclass(eq=False, kw_only=True)
class GroupUnsupported(CfdslError):
    """Too many query heads share a key/value head."""

    group: int
    limit: int = 16
    _says = "{group} query heads per key/value head are not supported."
    _remedy = "use a model with at most {limit}."


@dataclass(eq=False, kw_only=True)
class HiddenUnsupported(CfdslError):
    """The hidden size does not fit the loads."""

    hidden: int
    multiple: int = 64
    _says = "hidden size {hidden} is not supported."
    _remedy = "use a model whose hidden size is a multiple of {multiple}."


@dataclass(eq=False, kw_only=True)
class ModelUnsupported(CfdslError):
    """A model config asks for things that cfdsl does not do. `reasons` lists all of them."""

    name: str
    reasons: Sequence[str]
    _remedy = "use a model without these; cfdsl computes llama, mistral and qwen2 attention (docs/concepts.md)."

    @property
    def message(self) -> str:
        return f"the model {self.name!r} is not supported:" + "".join(f"\n  - {reason}" for reason in self.reasons)


@dataclass(eq=False, kw_only=True)
class WeightsMismatch(CfdslError):
    """The tensors given are not the weights of the model. `problems` lists every one that is missing or wrong."""

    model: str
    problems: Sequence[str]
    _remedy = "pass the tensors of the model's Hugging Face state_dict, in the decoder's dtype and all on its device."

    @property
    def message(self) -> str:
        return f"these are not the weights of {self.model}:" + "".join(f"\n  - {problem}" for problem in self.problems)


@dataclass(eq=False, kw_only=True)
class UnknownModel(CfdslError):
    """No preset has this name, and no config.json lies there."""

    name: str
    known: Sequence[str]
    _says = "there is no model {name!r}: no preset has this name and no config.json lies there."

    @property
    def remedy(self) -> str:
        return f"use one of {', '.join(self.known)}, or the path of a Hugging Face config.json."


@dataclass(eq=False, kw_only=True)
class UnknownPart(CfdslError):
    """No GPU part has this name."""

    name: str
    known: Sequence[str]
    _says = "there is no part {name!r}."

    @property
    def remedy(self) -> str:
        return f"use one of {', '.join(self.known)}."


@dataclass(eq=False, kw_only=True)
class NoTarget(CfdslError):
    """There is no GPU here that cfdsl can run on, and the call needs one."""

    needs: str = "a GPU of compute capability 9.0"
    found: str = "no GPU"
    _says = "this needs {needs}, found {found}."
    _remedy = "run it on such a machine; compiling and inspecting work without one when a part is named (part='h100-sxm')."


@dataclass(eq=False, kw_only=True)
class SharedMemoryExceeded(CfdslError):
    """A CTA's buffers do not fit. `breakdown` is (name, bytes) of each piece; the sum is spelled out."""

    needed: int
    limit: int
    breakdown: Sequence[tuple[str, int]] = ()
    _remedy = "use fewer or smaller ring stages, a larger cluster, or fewer CTAs per SM."

    @property
    def message(self) -> str:
        text = f"a CTA needs {self.needed:,} bytes of shared memory, the limit is {self.limit:,}"
        pieces = " + ".join(f"{name} {size:,}" for name, size in self.breakdown)
        return f"{text}: {pieces} = {self.needed:,}." if pieces else f"{text}."


@dataclass(eq=False, kw_only=True)
class NotResident(CfdslError):
    """The clusters of a launch with a grid barrier would not all run at once: it would never end."""

    clusters: int
    resident: int
    size: int
    part: str
    ctas_per_sm: int = 1
    _says = "the launch has {clusters} clusters of {size}, but {part} holds {resident} at once (CTAs per SM: {ctas_per_sm})."
    _remedy = "use at most {resident} clusters, a smaller cluster, or less shared memory per CTA: a grid barrier waits for all of them."


# ---- compiler ----------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class NotLowered(CfdslError):
    """The oracle runs this, the compiler does not (yet)."""

    op: str
    why: str = "the compiler has no lowering for it"
    advice: str = "interpret() runs it; for a kernel, write it with the ops of a shipped fusion"
    _says = "{op} cannot be compiled: {why}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class PlanError(CfdslError):
    """The protocol arithmetic of a plan does not add up. `sum` spells it out."""

    what: str
    sum: str
    advice: str = "this is a mistake in cfdsl unless you edited the plan; report it with `show --stage plan`"
    _says = "the plan is wrong: {what}: {sum}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class ConfigError(CfdslError):
    """A field of the schedule has a value that no kernel can be made with."""

    name: str
    value: object
    expected: str
    _says = "the config has {name}={value}, it must be {expected}."
    _remedy = "leave {name} out and the cost model chooses it, or give a value that is {expected}."


@dataclass(eq=False, kw_only=True)
class NoLegalConfig(CfdslError):
    """The cost model had to refuse every config. `reasons` has each reason once, with the configs that it speaks against."""

    fusion: str
    part: str
    given: str
    reasons: Sequence[str]

    @property
    def message(self) -> str:
        text = f"{self.fusion} has no config that runs on {self.part}{self.given}:"
        return text + "".join(f"\n  - {reason}" for reason in self.reasons)

    _remedy = "give fewer fields of the config, or another part; `explain` shows every config with its reasons."


@dataclass(eq=False, kw_only=True)
class CompileFailed(CfdslError):
    """The generated source was refused by the toolchain."""

    source: str
    detail: str
    _says = "the generated kernel {source} did not compile: {detail}."
    _remedy = "this is a mistake in cfdsl; report it with the generated source."


@dataclass(eq=False, kw_only=True)
class AlgorithmUnsupported(CfdslError):
    """No algorithm, or not the one that was asked for, can do a collective. `reasons` says why, of each that was looked at."""

    request: str
    algorithm: str | None
    reasons: Sequence[tuple[str, str]]
    possible: Sequence[str] = ()

    @property
    def message(self) -> str:
        text = f"{self.request} cannot be done{f' by {self.algorithm!r}' if self.algorithm else ''}:"
        return text + "".join(f"\n  - {name}: {why}" for name, why in self.reasons)

    @property
    def remedy(self) -> str:
        if self.possible:
            return f"use {_list([repr(name) for name in self.possible])}, or leave the algorithm to the cost model."
        return "use a smaller payload or a larger cluster, or write it with several calls."


# ---- runtime -----------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class ColdCompileInCapture(CfdslError):
    """A kernel would have to be compiled while a CUDA graph is captured."""

    kernel: str
    _says = "the kernel {kernel} is not loaded yet and a CUDA graph is being captured."
    _remedy = "call the kernel (or kernel.prepare()) once before the capture."


@dataclass(eq=False, kw_only=True)
class DisassemblerMissing(CfdslError):
    """SASS was asked for and there is no disassembler that can read the cubin."""

    found: str
    _says = "SASS needs nvdisasm, found {found}."
    _remedy = "pip install -U nvidia-cuda-nvdisasm."


@dataclass(eq=False, kw_only=True)
class NotTraced(CfdslError):
    """A timeline was asked of a kernel that notes no times."""

    kernel: str
    _says = "the kernel {kernel} was compiled without trace, so it does not note when its steps ran."
    _remedy = "compile it with trace=True."


@dataclass(eq=False, kw_only=True)
class RecordingFull(CfdslError):
    """A recording has no memory left for another launch's marks."""

    kernel: str
    room: int
    _says = "the recording has room for {room} launches of {kernel}, and this is one more."
    _remedy = "open it with more: recording(kernels, launches=...)."


@dataclass(eq=False, kw_only=True)
class MarksMissing(CfdslError):
    """A recorded launch has no times to show."""

    launch: int
    cta: int
    lane: str
    _says = "launch {launch} of the recording has no times of CTA {cta}'s {lane}: it has not run to its end."
    _remedy = "read the recording after its launches, and replay the CUDA graph if they were captured in one."


@dataclass(eq=False, kw_only=True)
class CacheFull(CfdslError):
    """The key/value cache has no room for another token."""

    cache: str
    length: int
    capacity: int
    _says = "the cache {cache!r} is full: it holds {length} of {capacity} tokens and a call appends one."
    _remedy = "allocate a larger cache, or drop tokens from it."


@dataclass(eq=False, kw_only=True)
class CapacityExceeded(CfdslError):
    """A prompt and the tokens to generate have no room in the caches."""

    prompt: int
    new: int
    capacity: int
    _says = "{prompt} tokens of the prompt and {new} new ones do not fit caches of {capacity} tokens."
    _remedy = "make the decoder with a capacity of at least their sum, or ask for fewer tokens."


@dataclass(eq=False, kw_only=True)
class BatchUnsupported(CfdslError):
    """More (or fewer) sequences than the one that a decoder decodes."""

    batch: int
    _says = "a batch of {batch} sequences is not supported: a decoder decodes one."
    _remedy = "decode the sequences one after another, each with a decoder (and caches) of its own or with reset() in between."


@dataclass(eq=False, kw_only=True)
class LengthOutOfRange(CfdslError):
    """A cache length or position is negative or too large."""

    argument: str
    value: int
    low: int
    high: int
    advice: str = "pass the number of tokens that the cache holds before the call"
    _says = "argument {argument!r} is {value}, outside of {low} to {high}."
    _remedy = "{advice}."


# ---- Hugging Face ------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class PatchRefused(CfdslError):
    """A Hugging Face model whose decode cfdsl cannot take over."""

    model: str
    problem: str
    advice: str
    _says = "{model} cannot be patched: {problem}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class DecodeRefused(CfdslError):
    """A call of a patched model, with one new token, that the kernels cannot compute."""

    problem: str
    advice: str
    _says = "the patched model cannot decode this call: {problem}."
    _remedy = "{advice}; or unpatch(model), and Hugging Face computes it."


@dataclass(eq=False, kw_only=True)
class NotPatched(CfdslError):
    """unpatch() of a model that is not patched."""

    model: str
    _says = "{model} is not patched."
    _remedy = "call unpatch once, on the model that patch was called on."


@dataclass(eq=False, kw_only=True)
class PackageMissing(CfdslError):
    """An optional package is needed and not installed."""

    package: str
    needs: str
    _says = "{needs} needs the package {package}, which is not installed."
    _remedy = "pip install {package}."


@dataclass(eq=False, kw_only=True)
class WeightsUnusable(CfdslError):
    """A model folder does not hold the weights that its config.json speaks of. `reasons` lists everything that is wrong."""

    folder: str
    reasons: Sequence[str]
    _remedy = "give a folder with config.json, *.safetensors and tokenizer.json, as `save_pretrained` writes it."

    @property
    def message(self) -> str:
        return f"the weights in {self.folder} cannot be used:" + "".join(f"\n  - {reason}" for reason in self.reasons)


def _list(values: Sequence[object]) -> str:
    *head, last = map(str, values)
    return f"{', '.join(head)} or {last}" if head else last
