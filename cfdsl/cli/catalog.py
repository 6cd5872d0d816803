"""Finding fusions, models and parts by the names that the command line gets."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from cfdsl.cli.complaints import NoSuchFusion, UnknownName
from cfdsl.compiler.parts import Part, part_named
from cfdsl.models import ModelConfig, resolve

if TYPE_CHECKING:
    from cfdsl.dsl.fusion import Fusion


def fusion_names() -> tuple[str, ...]:
    """The names of the shipped fusions, in alphabetical order."""
    return tuple(importlib.import_module("fusions").names())


def find_fusion(name: str) -> Fusion:
    """A shipped fusion by name, or `path/to/file.py:name` (or `package.module:name`) for one of the user's own."""
    if ":" in name or name.endswith(".py"):
        return _own_fusion(name)
    if name not in fusion_names():
        raise UnknownName(kind="fusion", name=name, known=", ".join(fusion_names()), command="fusions")
    found: Fusion = importlib.import_module("fusions").find(name)
    return found


def _own_fusion(spot: str) -> Fusion:
    from cfdsl.dsl.fusion import Fusion

    where, _, name = spot.rpartition(":") if ":" in spot else (spot, "", "")
    module = _module(spot, where)
    own = getattr(module, name, None)
    if not isinstance(own, Fusion):
        theirs = [each for each, value in vars(module).items() if isinstance(value, Fusion)]
        problem = f"{where} has no {name}" if own is None else f"{name} of {where} is no fusion, but {type(own).__name__}"
        problem = problem if name else "it names a file, and no fusion in it"
        advice = f"its fusions are: {', '.join(theirs)}" if theirs else "decorate the function of the spec with @cf.fusion"
        advice = f"write {where}:NAME; {advice}" if theirs and not name else advice
        raise NoSuchFusion(spot=spot, problem=problem, advice=advice)
    return own


def _module(spot: str, where: str) -> ModuleType:
    """What stands before the colon, run; what goes wrong inside of it is raised as it is (the command line says where)."""
    advice = f"give FILE.py:NAME with a file that exists, or a shipped fusion: {', '.join(fusion_names())}"
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports what is not
            raise NoSuchFusion(spot=spot, problem=f"there is no module {where}", advice=advice) from None
        except ValueError:  # an empty name
            raise NoSuchFusion(spot=spot, problem=f"there is no module {where!r}", advice=advice) from None
    loader = importlib.util.spec_from_file_location(Path(where).stem, where)
    if loader is None or loader.loader is None or not Path(where).is_file():
        raise NoSuchFusion(spot=spot, problem=f"there is no file {where}", advice=advice)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


def find_model(name: str) -> ModelConfig:
    """A preset by name, else the path of a Hugging Face config.json (or of the folder that holds one)."""
    return resolve(name)


def find_part(name: str) -> Part:
    """A part by name; raises `UnknownPart`, which lists the names."""
    return part_named(name)
