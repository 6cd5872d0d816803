"""The decoder: owns what a step reads and writes, runs it, and generates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import cfdsl as cf
from fusions.decoder.capture import capture
from fusions.decoder.checks import cache_errors, length_errors, place_errors, sampled, setting_errors, size_errors
from fusions.decoder.reading import Reader
from fusions.decoder.request import choice_errors, end_list, room_errors, token_list, whole
from fusions.decoder.sampling import Sample
from fusions.decoder.step import Launch, Runner, kernels, launches, new_state
from fusions.decoder.weights import DTYPES, EMBEDDING, weight_errors

Caches = list[tuple[Tensor, Tensor]]


class Decoder:
    """A model of the Llama family that decodes one sequence, one token per step.

        embedding(token) -> per layer: decoder_layer (or attention_block, ffn_block) -> lm_head -> logits, next_token; length += 1

    model      the sizes; a preset's name or a config.json will do
    weights    by Hugging Face name, in `dtype`, on one device; used where they are, never copied
    capacity   tokens that the caches can hold; also the rows of the rotary tables
    caches     a (k, v) per layer of shape (1, kv_heads, capacity, head_dim), the caller's; None: allocated here
    backend    "kernel": on the GPU. "oracle": on the CPU, by the oracle (slow: for tests and for looking)
    part       what to compile for; None: the GPU at hand
    layers     "whole": a kernel per layer, decoder_layer. "blocks": two, attention_block and ffn_block
    settings   by fusion's name, what `cfdsl.compile` (or `cfdsl.oracle`) shall be told: {"decoder_layer": {"qkv": "rows"}}; not the
               options that make the fusions fit together (`fusions.decoder.step.options`)

    `token`, `next_token`, `length` (1,) i32 and `logits` (1, vocab) f32 are on the device and never move: set `token` and `length`,
    call `step`, read `logits` and `next_token`. Not for two streams at the same time.

    Raises one error, or Errors with all: WeightsMismatch, BatchUnsupported, ArgumentError, NoTarget.
    """

    def __init__(
        self, model: cf.ModelConfig | str, weights: Mapping[str, Tensor], *, capacity: int, dtype: str = "bf16",
        caches: Sequence[tuple[Tensor, Tensor]] | None = None, backend: str = "kernel", part: Any = None,
        layers: str = "whole", settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.capacity, self.dtype, self.backend = cf.models.resolve(model), capacity, dtype, backend
        wrong = [*size_errors(self.model), *setting_errors(capacity, dtype, backend, part, layers, settings or {})]
        about = {getattr(error, "argument", "") for error in wrong}  # what is wrong cannot be what others are judged by
        if not about & {"model", "dtype", "backend"}:
            nowhere = list(place_errors(backend, part))
            where = "cpu" if backend == "oracle" else None if nowhere or part is not None else "cuda"
            wrong += [*nowhere, *weight_errors(self.model, weights, dtype, where)]
            if caches is not None and "capacity" not in about:
                table = weights.get(EMBEDDING) if isinstance(weights, Mapping) else None
                wrong += cache_errors(self.model, caches, capacity, DTYPES[dtype], table.device if isinstance(table, Tensor) else None)
        cf.errors.raise_all(wrong)
        self.device = weights[EMBEDDING].device
        self.runners: dict[str, Runner] = kernels(self.model, dtype, backend, part, capacity, layers, settings or {})
        with torch.inference_mode(False):  # made in that mode they could only be written in that mode
            self.caches: Caches = self._allocate() if caches is None else list(caches)
            self.state = new_state(self.model, dtype, capacity, self.device)
        self.token, self.next_token = self.state.token, self.state.next_token
        self.length, self.logits = self.state.length, self.state.logits
        self.launches: list[Launch] = launches(self.model, weights, self.caches, self.state, self.runners)
        self._replays: dict[bool, Callable[[], None]] = {}
        self._sequence = 0  # how many were begun

    def _allocate(self) -> Caches:
        shape = (1, self.model.kv_heads, self.capacity, self.model.head_dim)

        def empty() -> Tensor:
            return torch.zeros(shape, dtype=DTYPES[self.dtype], device=self.device)

        return [(empty(), empty()) for _ in range(self.model.layers)]

    # ---- stepping ------------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Decode `token` at position `length`: `logits` and `next_token` are the result, and `length` is one more.

        On the current stream. Allocates nothing and does not wait. In a full cache nothing is stored, which `status` tells.
        """
        self._launch()
        self.length.add_(1)  # the one tensor that all layers take as `length` and as `pos`

    def advance(self) -> None:
        """Make `next_token` the token to feed, on the device."""
        self.token.copy_(self.next_token)

    def step_and_advance(self) -> None:
        """`step`, then `advance`: greedy decoding."""
        self._launch()
        self.state.count_and_advance()

    def _launch(self) -> None:
        for launch in self.launches:
            launch()

    def capture(self, advance: bool = True) -> Callable[[], None]:
        """Record `step` (and `advance`) in a CUDA graph. Returns what replays it on the current stream; runs nothing now.

        Raises ArgumentError with backend "oracle", which launches nothing that could be recorded, and with weights that are not on a GPU.
        """
        if self.backend == "oracle":
            expected = "'kernel' for capture(): a CUDA graph is of kernels"
            raise cf.errors.ArgumentError(argument="backend", expected=expected, got=repr(self.backend), advice="call step() instead")
        self._expect_gpu("capture()")
        self._warm_up()
        return capture(self.step_and_advance if advance else self.step, self.runners.values(), self.device)

    def _expect_gpu(self, call: str) -> None:
        """Kernels that were compiled for a part without a GPU have nothing to run on."""
        if self.backend == "kernel" and self.device.type != "cuda":
            advice = "make the decoder with its weights on a GPU; on a CPU, kernels are compiled and looked at"
            raise cf.errors.ArgumentError(argument="weights", expected=f"on a GPU for {call}", got=f"those on {self.device}", advice=advice)

    def _warm_up(self) -> None:
        """Call torch's own kernels once and change nothing: the first call loads them, which a capture may not."""
        before = self.state.counters.clone()
        self.length.add_(1)
        self.advance()
        self.state.count_and_advance()
        self.state.counters.copy_(before)

    def reset(self, length: int = 0) -> None:
        """Count the caches as holding `length` tokens: 0 to begin a sequence, or as many as the caller has written into them. A generator
        of a sequence before does not go on (SequenceSuperseded). Raises ArgumentError for a number that they cannot hold."""
        cf.errors.raise_all(length_errors(length, self.capacity))
        self._sequence += 1
        self.length.fill_(length)

    # ---- generating ----------------------------------------------------------------------------------------------------------------

    def generate(
        self, prompt_ids: Sequence[int], max_new_tokens: int, *, sampler: Sample | None = None, eos: int | Iterable[int] | None = None,
        prefill: Callable[[Sequence[int]], int] | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Begin a new sequence with a prompt, and yield up to `max_new_tokens` tokens; the last one is of `eos` if one of it comes up.

        sampler   logits (1, vocab) -> token (1,) i32 (see `fusions.decoder.sampling`); None: the argmax, chosen by the kernel
        prefill   writes keys and values of the prompt's first tokens into `caches`, and returns of how many: at most all but the last,
                  which a step must see. The others are fed one by one. None: all of them are.

        On a GPU the steps are replays of a graph, and the next one is already running while a token is on its way to the host; so after
        an `eos` the caches hold one token more than was yielded. Raises all that is wrong here and now: CapacityExceeded where the
        prompt and the new tokens have no room, BatchUnsupported, ArgumentError. There is one sequence at a time: a generator whose decoder
        has begun another one since raises SequenceSuperseded.
        """
        self._expect_gpu("generate()")
        prompt, ends = token_list(prompt_ids), end_list(eos)
        room = room_errors(self.model, self.capacity, prompt_ids, prompt, max_new_tokens)
        cf.errors.raise_all([*choice_errors(sampler, prefill, ends), *room])
        assert prompt is not None
        return self._generate([int(token) for token in prompt], max_new_tokens, sampler, frozenset(int(token) for token in ends), prefill)

    def _generate(
        self, prompt: list[int], count: int, sampler: Sample | None, ends: frozenset[int], prefill: Callable[[Sequence[int]], int] | None
    ) -> Iterator[int]:
        run, reader = self._run(advance=sampler is None), Reader(self.device)
        self._feed(prompt, run, prefill)
        sequence = self._sequence
        for left in reversed(range(count)):
            if sampler is not None:
                self.token.copy_(sampled(sampler(self.logits)))
            reader.begin(self.token)
            if left and reader.asynchronous:
                run()  # the GPU goes on while the host gets the token
            token = reader.end()
            if not 0 <= token < self.model.vocab:
                raise cf.errors.TokenOutOfRange(token=token, vocab=self.model.vocab)
            yield token
            if token in ends or not left:
                return
            if self._sequence != sequence:
                raise cf.errors.SequenceSuperseded(yielded=count - left)
            if not reader.asynchronous:
                run()

    def _feed(self, prompt: list[int], run: Callable[[], None], prefill: Callable[[Sequence[int]], int] | None) -> None:
        """The prompt through prefill and steps. The token to feed after `run` advances is overwritten until the prompt is used up."""
        self.reset()
        done = 0 if prefill is None else prefill(prompt)
        if not whole(done) or not 0 <= done < len(prompt):
            raise cf.errors.ArgumentError(argument="prefill", expected=f"to return 0 to {len(prompt) - 1} tokens", got=repr(done))
        self.reset(done)
        for token in torch.tensor(prompt[done:], dtype=torch.int32).to(self.device).split(1):
            self.token.copy_(token)
            run()

    def _run(self, advance: bool) -> Callable[[], None]:
        """A step: replayed on a GPU, else as it is."""
        if self.device.type != "cuda":
            return self.step_and_advance if advance else self.step
        if advance not in self._replays:
            self._replays[advance] = self.capture(advance)
        return self._replays[advance]

    # ---- looking -------------------------------------------------------------------------------------------------------------------

    @property
    def kernels(self) -> list[tuple[str, Runner]]:
        """(fusion's name, kernel) in launch order: layers share kernels."""
        return [(launch.name, launch.kernel) for launch in self.launches]

    def kernel_bytes(self, length: int | None = None) -> int:
        """Bytes of device memory that one step must read and write with `length` cached tokens (None: as many as there are; waits)."""
        cached = int(self.length.item()) if length is None else length
        sizes = {"tokens": self.capacity, "positions": self.capacity, "length": cached}
        each = {name: runner.traffic(sizes).hbm_bytes for name, runner in self.runners.items()}
        return sum(each[launch.name] for launch in self.launches)

    def status(self, clear: bool = False) -> tuple[str, ...]:
        """What the kernels flagged since the flags were last cleared, with the fusion's name ahead; empty if nothing. Waits for the GPU."""
        flagged = [(name, runner.status(clear)) for name, runner in self.runners.items()]
        return tuple(f"{name}: {text}" for name, texts in flagged for text in texts)

    def __repr__(self) -> str:
        return f"<Decoder {self.model.name}: {self.dtype}, {self.capacity} tokens, {self.backend} on {self.device}>"
