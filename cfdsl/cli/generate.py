"""`generate`: a whole model continues a prompt, the text appearing as it is made."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from cfdsl.cli.complaints import BadOption, GenerateNeedsGpu, OptionsConflict
from cfdsl.cli.console import console
from cfdsl.cli.files import file_errors
from cfdsl.cli.request import Dtype
from cfdsl.cli.traced import save_step
from cfdsl.cli.units import plural, trim
from cfdsl.dsl.fusion import DTYPES
from cfdsl.errors import CfdslError, raise_all

if TYPE_CHECKING:
    from cfdsl.hf.generation import Generation, Sampling, Source
    from cfdsl.hf.text import Vocabulary

DEFAULT_NEW = 64
LEAST_TEMPERATURE = 2.0**-126  # of what float32 has with full precision
SEEDS = range(-(2**63), 2**64)  # what torch.Generator takes


def generate(
    model: Annotated[str, typer.Option("--model", "-m", help="A Hugging Face folder, a .gguf file, or a preset: random weights.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to continue.", show_default=False)],
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to make at most.", show_default=f"{DEFAULT_NEW}, or as many as fit"),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the fewest tokens with this probability together.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws, and of random weights.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and caches; weights of another one are converted.")] = "bf16",
    backend: Annotated[
        Literal["kernel", "oracle"], typer.Option(help="The GPU's kernels, or the same graphs on the CPU (slow).")
    ] = "kernel",
    trace: Annotated[
        Path | None, typer.Option(help="Afterwards, write when each stage of each CTA ran in one more step.", show_default=False)
    ] = None,
) -> None:
    """Continue a prompt with a whole model, one token per step."""
    from cfdsl.cli.gpu import gpu_part

    mistakes: list[CfdslError] = [*sampling_errors(temperature, top_k, top_p, seed), *file_errors("--trace", trace)]
    if backend == "oracle" and trace is not None:
        mistakes.append(OptionsConflict(option="--trace", other="--backend oracle", reason="only kernels have a timeline"))
    raise_all(mistakes)
    if backend == "kernel" and gpu_part() is None:
        raise GenerateNeedsGpu()
    from cfdsl.hf.generation import Sampling, find_source

    source = find_source(model)
    vocabulary = source.vocabulary()
    tokens = vocabulary.encode(prompt)
    new = room_for(source, len(tokens), max_new_tokens)
    ready = get_ready(source, tokens, new, Sampling(temperature, top_k, top_p, seed), DTYPES[dtype], backend, trace is not None)
    stream_out(ready, vocabulary)
    if trace is not None:
        save_step(trace, ready.trace(), console(stderr=True))


def sampling_errors(temperature: float, top_k: int, top_p: float, seed: int) -> Iterator[BadOption]:
    """The sampling's numbers that no sampler takes, or that mean nothing beside the others."""
    if not 0 < top_p <= 1:
        yield BadOption(option="--top-p", value=str(top_p), expected="a probability above 0, up to 1")
    if not (temperature == 0 or LEAST_TEMPERATURE <= temperature < math.inf):
        yield BadOption(option="--temperature", value=str(temperature), expected="0 or a number that float32 has")
    if seed not in SEEDS:
        yield BadOption(option="--seed", value=str(seed), expected=f"from {SEEDS[0]} to {SEEDS[-1]}")
    if temperature == 0 and (top_k or 0 < top_p < 1):
        yield BadOption(option="--temperature", value="0", expected="above 0 where --top-k or --top-p are given")


def room_for(source: Source, prompt: int, asked: int | None) -> int:
    """How many tokens to make: so many as were asked for, if there are positions for them behind the prompt; else what there is room for
    up to the default. A prompt must have tokens."""
    longest = source.sizes.max_positions
    if not prompt:
        raise BadOption(option="--prompt", value="", expected="a text of at least one token")
    room = longest - prompt
    if room < 1:
        raise BadOption(option="--prompt", value=f"{prompt:,} tokens", expected=f"shorter than the model's {longest:,} positions")
    if asked is not None and asked > room:
        expected = f"at most {room}: the model has {longest:,} positions and the prompt takes {prompt:,}"
        raise BadOption(option="--max-new-tokens", value=str(asked), expected=expected)
    return min(DEFAULT_NEW, room) if asked is None else asked


def get_ready(source: Source, tokens: list[int], new: int, sampling: Sampling, dtype: str, backend: str, trace: bool) -> Generation:
    """Load or make the weights and compile the kernels, with a bar on stderr; what is not as one might think is said there too."""
    from cfdsl.hf import generation

    screen = console(stderr=True)
    if source.random:
        screen.print(
            f"RANDOM WEIGHTS: {source.sizes.name} is a preset, sizes only. The prompt's bytes are its tokens, and the output is token "
            "numbers without meaning. For text, give --model the folder of a real model.", style="bold yellow", markup=False,
        )  # fmt: skip
    with bar() as show:
        ready = generation.get_ready(source, tokens, new, sampling=sampling, dtype=dtype, backend=backend, progress=show, trace=trace)
    if ready.converted:
        screen.print(f"weights in {', '.join(ready.converted)} were converted to {dtype}", style="yellow", markup=False)
    return ready


@contextmanager
def bar() -> Iterator[Callable[[int, int], None]]:
    """A bar over the weights; then, until the block ends, a note that kernels are made."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("weights", total=None)

        def show(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of, description="weights" if done < of else "weights are there; kernels")

        yield show


def stream_out(ready: Generation, vocabulary: Vocabulary) -> None:
    """The text to stdout while it grows; how fast that was to stderr."""
    from cfdsl.hf.text import stream

    times = [time.perf_counter()]

    def timed() -> Iterator[int]:
        for token in ready.tokens():
            times.append(time.perf_counter())
            yield token

    for piece in stream(vocabulary, timed()):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    screen = console(stderr=True)
    screen.print(summary(len(ready.prompt), times), style="dim", markup=False)
    for flag in ready.flags():
        screen.print(flag, style="yellow", markup=False)


def summary(prompt: int, times: list[float]) -> str:
    """How fast it was. times: seconds at the start and after each token."""
    made, first = len(times) - 1, times[1] - times[0]
    text = f"prompt of {plural(prompt, 'token')} and the first new one in {first:.2f} s"
    if made < 2:
        return f"{text}; no further token"
    rest = times[-1] - times[1]
    return f"{text}; {plural(made - 1, 'further token')} in {rest:.2f} s: {trim((made - 1) / max(rest, 1e-9), 2)} tokens/s"
