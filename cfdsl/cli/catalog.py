"""Finding fusions, models and parts by the names that the command line gets."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from cfdsl.cli.complaints import UnknownName
from cfdsl.compiler.parts import Part, part_named
from cfdsl.models import ModelConfig, resolve

if TYPE_CHECKING:
    from cfdsl.dsl.fusion import Fusion


def fusion_names() -> tuple[str, ...]:
    """The names of the shipped fusions, in alphabetical order."""
    return tuple(importlib.import_module("fusions").names())


def find_fusion(name: str) -> Fusion:
    """A shipped fusion by name, or `path/to/file.py:name` (or `package.module:name`) for one of the user's own."""
    if ":" in name:
        return _own_fusion(name)
    if name not in fusion_names():
        raise UnknownName(kind="fusion", name=name, known=", ".join(fusion_names()), command="fusions")
    found: Fusion = importlib.import_module("fusions").find(name)
    return found


def _own_fusion(spot: str) -> Fusion:
    where, _, name = spot.rpartition(":")
    try:
        if where.endswith(".py"):
            loader = importlib.util.spec_from_file_location(Path(where).stem, where)
            if loader is None or loader.loader is None or not Path(where).is_file():
                raise ImportError(where)
            module = importlib.util.module_from_spec(loader)
            loader.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        own: Fusion = getattr(module, name)
        return own
    except (ImportError, AttributeError):
        raise UnknownName(kind="fusion", name=spot, known=", ".join(fusion_names()), command="fusions") from None


def find_model(name: str) -> ModelConfig:
    """A preset by name, else the path of a Hugging Face config.json (or of the folder that holds one)."""
    return resolve(name)


def find_part(name: str) -> Part:
    """A part by name; raises `UnknownPart`, which lists the names."""
    return part_named(name)
