"""What goes wrong when kernels are loaded, called, traced or used to decode."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.errors.base import CfdslError


@dataclass(eq=False, kw_only=True)
class ColdCompileInCapture(CfdslError):
    """A kernel would have to be compiled while a CUDA graph is captured."""

    kernel: str
    _says = "the kernel {kernel} is not loaded yet and a CUDA graph is being captured."
    _remedy = "call the kernel (or kernel.prepare()) once before the capture."


@dataclass(eq=False, kw_only=True)
class CacheUnusable(CfdslError):
    """The folder for generated sources and compiled kernels cannot be written to."""

    folder: str
    problem: str
    _says = "the kernel cache {folder} cannot be used: {problem}."
    _remedy = "set CFDSL_CACHE_DIR to a folder that can be made and written to, or make room in this one."


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
class SequenceSuperseded(CfdslError):
    """A generator goes on with a sequence that is no longer in its decoder's caches."""

    yielded: int
    _says = "the decoder has begun another sequence since this generator yielded its token {yielded}: the caches are no longer its own."
    _remedy = "use up one generator before the next begins, or make a decoder for each (weights are shared between them, not copied)."


@dataclass(eq=False, kw_only=True)
class TokenOutOfRange(CfdslError):
    """What was chosen from the logits of a step is no token of the model."""

    token: int
    vocab: int
    _says = "token {token} was chosen, of a vocabulary of {vocab}."
    _remedy = (
        "return tokens of the model, if the sampler is your own; a Sampler says -1 of logits that are not numbers: look at the weights, "
        "and at the decoder's status()."
    )


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
