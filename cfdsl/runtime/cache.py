"""The disk cache of compiled kernels.

    <root>/source/cfdsl_<name>_<hash>.py     generated source; the hash is of the text, so a file is written once and never changes
    <root>/kernel/<key>/                      kernel.o, kernel.ptx, kernel.cubin, and meta.json with a checksum of each
    <root>/choice/<key>.json                  which config was chosen (`cfdsl.runtime.choices`)
    <root>/lock/<key>.lock                    held while a kernel is compiled, so that two processes do not both do it

The root is CFDSL_CACHE_DIR, else the user's cache folder. Everything appears by renaming something complete: a reader needs no lock. An
entry that cannot be read, or whose checksums are wrong, is a miss with a warning, and is replaced; so is a source. Objects are code that
will run here: keep the folder as safe as the programs you run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from cfdsl.dsl.source import warn_user
from cfdsl.errors import CacheUnusable

FILES = {"object": "kernel.o", "ptx": "kernel.ptx", "cubin": "kernel.cubin"}
# What meta.json must say of a kernel, beside its key and checksums.
FACTS: dict[str, tuple[type, ...]] = {
    "symbol": (str,),
    "registers": (int,),
    "stack": (int,),
    "spills": (int, type(None)),
    "compile_seconds": (int, float),
}


class DamagedCacheEntry(UserWarning):
    """A cache entry was unreadable, or a source not what was generated; it is made again."""


@dataclass(frozen=True)
class Entry:
    """A compiled kernel on disk: its folder, and what meta.json says."""

    folder: Path
    meta: Mapping[str, Any]

    def path(self, kind: str) -> Path:
        """The file of kind "object", "ptx" or "cubin"."""
        return self.folder / FILES[kind]


def root() -> Path:
    """The cache's folder: CFDSL_CACHE_DIR if set, else the user's cache folder. Asked each time, so that the variable may change."""
    return Path(os.environ.get("CFDSL_CACHE_DIR") or platformdirs.user_cache_dir("cfdsl")).expanduser()


def digest(content: bytes | str) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


class KernelCache:
    """The cache under `folder` (default: `root()`)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or root()

    def source(self, name: str, text: str) -> Path:
        """The file that holds this generated text, written now if it is not there, or, with a warning, if it holds another one."""
        path = self.folder / "source" / f"cfdsl_{name}_{digest(text)[:16]}.py"
        content = text.encode()
        try:
            if path.read_bytes() == content:
                return path
            warn_user(f"the generated source {path} is damaged or was edited; writing it again", DamagedCacheEntry)
        except OSError:
            pass
        self.put(path, content)
        return path

    def put(self, path: Path, content: bytes) -> None:
        """Write a file of the cache, whole or not at all."""
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """CacheUnusable for what the file system refuses."""
        try:
            yield
        except OSError as error:
            raise CacheUnusable(folder=str(self.folder), problem=error.strerror or str(error)) from error

    def find(self, key: str, warn: bool = True) -> Entry | None:
        """The entry of `key`; None if there is none, or if it is damaged (with a DamagedCacheEntry warning unless not `warn`)."""
        folder = self.folder / "kernel" / key
        if not folder.exists():
            return None
        try:
            meta = json.loads((folder / "meta.json").read_bytes())
            for kind, checksum in meta["sha256"].items():
                if digest((folder / FILES[kind]).read_bytes()) != checksum:
                    raise ValueError(f"{FILES[kind]} does not have the checksum in meta.json")
            if meta["sha256"].keys() != FILES.keys() or meta["key"] != key:
                raise ValueError("meta.json is of another entry")
            missing = [name for name, kinds in FACTS.items() if not isinstance(meta.get(name, ...), kinds)]
            if missing:
                raise ValueError(f"meta.json does not say {', '.join(missing)}")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            if warn:
                warn_user(f"the cache entry {folder} is damaged ({error}); compiling it again", DamagedCacheEntry)
            return None
        return Entry(folder, meta)

    def add(self, key: str, contents: Mapping[str, bytes], meta: Mapping[str, Any]) -> Entry:
        """Put a compiled kernel in place of whatever is there. Call it under `lock(key)`.

        contents   the bytes of each kind in FILES
        meta       what FACTS lists, and more
        """
        with self._writing():
            return self._add(key, contents, meta)

    def _add(self, key: str, contents: Mapping[str, bytes], meta: Mapping[str, Any]) -> Entry:
        kernels = self.folder / "kernel"
        kernels.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=kernels))
        try:
            for kind, content in contents.items():
                (made / FILES[kind]).write_bytes(content)
            facts = {**meta, "key": key, "sha256": {kind: digest(content) for kind, content in contents.items()}}
            (made / "meta.json").write_text(json.dumps(facts, indent=1))
            made.chmod(0o755)
            final = kernels / key
            if final.exists():  # a folder cannot be renamed onto another one: move the damaged one aside first
                aside = Path(tempfile.mkdtemp(prefix=".old-", dir=kernels))
                final.rename(aside / "entry")
                shutil.rmtree(aside, ignore_errors=True)
            made.rename(final)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return Entry(final, facts)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Alone while compiling `key`."""
        with self._writing():
            (self.folder / "lock").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock" / f"{key}.lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
