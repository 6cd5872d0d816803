"""The shipped fusions, one file each: the spec, a plain PyTorch reference, and a maker of example inputs.

Modules are loaded when asked for, so that importing this package costs nothing. A file `fusions/x.py` defines the fusion `x`;
a folder is a package that builds on them, and no fusion.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfdsl import Fusion


def names() -> tuple[str, ...]:
    """The names of the shipped fusions, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not (module.ispkg or module.name.startswith("_"))))


def find(name: str) -> Fusion:
    """The fusion of that name. Raises KeyError, naming those there are."""
    if name not in names():
        raise KeyError(f"no fusion {name!r}; there are {', '.join(names())}")
    found: Fusion = getattr(import_module(f"{__name__}.{name}"), name)
    return found
