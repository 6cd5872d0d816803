"""A whole model's weights by Hugging Face's names: read from a folder, or random and seeded, made where they are used."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfdsl.errors import PackageMissing, WeightsUnusable
from cfdsl.models import ModelConfig
from cfdsl.runtime.arguments import DTYPES

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Progress = Callable[[int, int], None]  # tensors done, of how many


def nothing(done: int, of: int) -> None:
    """Progress that nobody looks at."""


def weight_shapes(sizes: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, from fusions.decoder, which is found by name: fusions lie above this floor."""
    found: dict[str, tuple[int, ...]] = importlib.import_module("fusions.decoder").weight_shapes(sizes)
    return found


def random_weights(
    sizes: ModelConfig, dtype: str = "bf16", device: str | torch.device = "cpu", seed: int = 0, progress: Progress = nothing
) -> dict[str, Tensor]:
    """Weights from a normal distribution, made on `device`: the same on every run there, but not the same on a CPU as on a GPU.

    Matrices have the deviation 1 / sqrt(in), so that no layer's output vanishes or grows; norms are near 1, biases near 0.
    """
    generator = torch.Generator(device).manual_seed(seed)
    shapes, made = weight_shapes(sizes), {}
    for done, (name, shape) in enumerate(shapes.items(), 1):
        weight = torch.empty(shape, dtype=DTYPES[dtype], device=device)
        scale = 0.1 if len(shape) == 1 else 1.0 if name == "model.embed_tokens.weight" and not sizes.tied_embeddings else shape[-1] ** -0.5
        weight.normal_(0.0, scale, generator=generator)
        made[name] = weight.add_(1.0) if name.endswith("norm.weight") else weight
        progress(done, len(shapes))
    return made


def folder_weights(
    folder: Path, sizes: ModelConfig, dtype: str = "bf16", device: str | torch.device = "cpu", progress: Progress = nothing
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights in a folder's safetensors files, on `device`, and the dtypes among them that had to be converted to `dtype`.

    Only what a decode step needs is read. Raises WeightsUnusable with all that is missing or broken, PackageMissing without safetensors.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise PackageMissing(package="safetensors", needs="reading *.safetensors") from None
    wanted = weight_shapes(sizes)
    found, converted, broken = {}, set(), []
    for file in _files(folder):
        try:
            with safe_open(str(file), framework="pt", device=str(device)) as opened:
                for name in (name for name in opened.keys() if name in wanted):  # noqa: SIM118
                    if name in found:
                        broken.append(f"{name} is in {file.name} and in another file")
                    tensor = opened.get_tensor(name)
                    if tensor.dtype != DTYPES[dtype]:
                        converted.add(str(tensor.dtype).removeprefix("torch."))
                    found[name] = tensor.to(DTYPES[dtype]).contiguous()
                    progress(len(found), len(wanted))
        except SafetensorError as error:
            broken.append(f"{file.name} cannot be read: {error}")
    missing = broken or [f"{name} is missing" for name in wanted if name not in found]
    if missing:
        raise WeightsUnusable(folder=str(folder), reasons=missing[:8] + ([f"and {len(missing) - 8} more"] if len(missing) > 8 else []))
    return found, tuple(sorted(converted))


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights: model.safetensors, which Hugging Face looks for first; those that the index names; all there are."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        table = read_object(folder, INDEX).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise WeightsUnusable(folder=str(folder), reasons=[f"weight_map in {INDEX} is no table of files"])
        names = sorted(set(table.values()))
        lost = [f"{name}, which {INDEX} names, is missing" for name in names if not (folder / name).is_file()]
        if lost:
            raise WeightsUnusable(folder=str(folder), reasons=lost)
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(file.name for kind in ("*.bin", "*.pth", "*.pt") for file in folder.glob(kind))
        beside = f" ({others[0]} is not read: it may run code)" if others else ""
        raise WeightsUnusable(folder=str(folder), reasons=[f"there is no *.safetensors file{beside}"])
    return files


def end_tokens(folder: Path) -> frozenset[int]:
    """The tokens that end a text, from generation_config.json or config.json; none where neither says. Raises WeightsUnusable where one
    of them cannot be read."""
    for name in ("generation_config.json", "config.json"):
        stated: Any = read_object(folder, name).get("eos_token_id") if (folder / name).is_file() else None
        if stated is not None:
            tokens = stated if isinstance(stated, list) else [stated]
            if not all(isinstance(token, int) for token in tokens):
                raise WeightsUnusable(folder=str(folder), reasons=[f"eos_token_id in {name} is {stated!r}, and no token"])
            return frozenset(tokens)
    return frozenset()


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in a folder. Raises WeightsUnusable."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsUnusable(folder=str(folder), reasons=[f"{name} is not JSON: {error}"]) from error
    if not isinstance(found, dict):
        raise WeightsUnusable(folder=str(folder), reasons=[f"{name} is not a JSON object"])
    return found
