"""What a fusion needs to know of a model: its sizes and conventions, from a preset or a Hugging Face config.json."""

from __future__ import annotations

from cfdsl.models.config import HEAD_DIMS, MAX_GROUP, ModelConfig, RopeScaling, problems, rope_inv_freq
from cfdsl.models.presets import PRESETS, resolve

__all__ = ["HEAD_DIMS", "MAX_GROUP", "PRESETS", "ModelConfig", "RopeScaling", "problems", "resolve", "rope_inv_freq"]
