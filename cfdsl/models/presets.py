"""Models by name."""

from __future__ import annotations

from os import PathLike

from cfdsl.models.config import ModelConfig, RopeScaling, expect


def _llama3(factor: float) -> RopeScaling:
    return RopeScaling("llama3", factor, 1.0, 4.0, 8192)


_ALL = (
    ModelConfig("llama-2-7b", 4096, 32, 32, 128, layers=32, intermediate=11008, vocab=32000, max_positions=4096),
    ModelConfig(
        "llama-3.1-8b", 4096, 32, 8, 128, rope_theta=500000.0, layers=32, intermediate=14336, vocab=128256, max_positions=131072,
        rope_scaling=_llama3(8.0),
    ),
    ModelConfig(
        "llama-3.2-1b", 2048, 32, 8, 64, rope_theta=500000.0, layers=16, intermediate=8192, vocab=128256, max_positions=131072,
        rope_scaling=_llama3(32.0), tied_embeddings=True,
    ),
    ModelConfig("tinyllama-1.1b", 2048, 32, 4, 64, layers=22, intermediate=5632, vocab=32000, max_positions=2048),
    ModelConfig(
        "smollm2-135m", 576, 9, 3, 64, rope_theta=100000.0, layers=30, intermediate=1536, vocab=49152, max_positions=8192,
        tied_embeddings=True,
    ),
    ModelConfig(
        "mistral-7b-v0.3", 4096, 32, 8, 128, rope_theta=1000000.0, layers=32, intermediate=14336, vocab=32768, max_positions=32768,
    ),
)  # fmt: skip
PRESETS: dict[str, ModelConfig] = {model.name: model for model in _ALL}


def resolve(model: ModelConfig | str | PathLike[str]) -> ModelConfig:
    """A ModelConfig as it is, a preset by its name, or a config.json (or its folder) by its path. Raises ArgumentError for anything else,
    and what `ModelConfig.from_hf` raises."""
    if isinstance(model, ModelConfig):
        return model
    expect(model, (str, PathLike), "model", "a ModelConfig, the name of a preset, or the path of a config.json")
    preset = PRESETS.get(str(model))
    return preset or ModelConfig.from_hf(model)
