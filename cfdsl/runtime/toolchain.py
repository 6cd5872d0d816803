"""From generated source to an object, with CuTe DSL: the only caller of `cute.compile`.

No GPU is needed. CuTe DSL is imported here and not at the top: importing it takes half a second, and it reads CUTE_DSL_ARCH once.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cfdsl.compiler.launch import launch_args
from cfdsl.compiler.plan import Arg, KernelPlan
from cfdsl.errors import CompileFailed
from cfdsl.runtime.artifacts import read_cubin
from cfdsl.runtime.spec_line import spec_line

# Raise it when this file starts to build other objects from the same source: it is part of the cache's key.
VERSION = 2

# TVM-FFI: calls take torch tensors as they are, with less host time than CuTe DSL's own executor.
OPTIONS = ("--enable-tvm-ffi", "--keep-ptx", "--keep-cubin")
# Keeps the place of every operation, which costs half as much time again, and the assembler's remarks: how much it spilled. Taken only
# where there is something to tell.
TELL = "remarks{ptx}"

_compiling = threading.Lock()  # the tracer keeps its state in globals, and its log is caught from stderr


@dataclass(frozen=True)
class Built:
    """A compiled kernel: the relocatable object that `load` takes, its PTX and cubin, and seconds spent.

    log     the assembler's remarks, if the kernel has a stack and may have spilled; else empty
    """

    object: bytes
    ptx: bytes
    cubin: bytes
    log: str
    seconds: float


def default_arch(arch: str) -> None:
    """Say what to compile for before CuTe DSL is first imported, as it would otherwise probe for a GPU and assume sm_100a without one.

    Once it is imported this has no effect, and needs none: `build` passes --gpu-arch, which governs both tracing and code generation.
    """
    if "cutlass" not in sys.modules:
        os.environ.setdefault("CUTE_DSL_ARCH", arch)


def cache_key(source: str, plan: KernelPlan, arch: str) -> str:
    """What a compiled kernel depends on, as a hexadecimal sha256.

    Source, argument specs, config (some of it goes past the source), architecture, options, versions, and the primitives' sources. The
    model's name is in it because a Kernel tells it: equal sizes under two names are two kernels.
    """
    facts = {
        "source": source,
        "args": [asdict(arg) for arg in plan.args],
        "config": asdict(plan.config),
        "names": [plan.name, plan.model, plan.dtype],
        "arch": arch,
        "options": OPTIONS,
        "toolchain": VERSION,
        "versions": {name: _version(name) for name in ("cfdsl", "nvidia-cutlass-dsl")},
        "primitives": primitives_fingerprint(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


@functools.cache
def primitives_fingerprint() -> str:
    """sha256 over the names and texts of all source files of the package `primitives`, as they are on disk (not imported)."""
    spec = importlib.util.find_spec("primitives")
    assert spec is not None
    whole = hashlib.sha256()
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            whole.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Tracing makes some hundred thousand objects and drops few: walking them over and over takes a tenth of a compilation."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def build(path: Path, plan: KernelPlan, arch: str, symbol: str) -> Built:
    """Compile the generated file `path` for `arch` into an object whose function is called `symbol`. CompileFailed on any error.

    The file's `launch` takes the tensors of `launch_args(plan.args)` and a stream; its `ATTRS` may hold `cluster` and `maxnreg`.
    """
    started = time.perf_counter()
    with _compiling, tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as log:
        default_arch(arch)
        try:
            compiled = _compile_or_tell(path, plan, arch, folder)
            compiled.export_to_c(f"{folder}/kernel.o", symbol)
        except Exception as error:
            if sys.__stderr__ is not None:  # there is none under pythonw and some daemons
                print(log.getvalue(), end="", file=sys.__stderr__)
            raise _failed(path, error) from error
        return Built(
            object=Path(folder, "kernel.o").read_bytes(),
            ptx=compiled.artifacts.PTX.encode(),
            cubin=compiled.artifacts.CUBIN,
            log="\n".join(line for line in _plain(log.getvalue()).splitlines() if "ptxas" in line),
            seconds=time.perf_counter() - started,
        )


def _compile_or_tell(path: Path, plan: KernelPlan, arch: str, folder: str) -> Any:
    """Compile; once more with TELL if that fails without saying at which line, or if there is a stack, so that bytes may be spilled."""
    with _no_collection():
        try:
            compiled = _compile(path, plan, arch, folder)
        except Exception as error:
            if _generated_line(path, error):
                raise
            return _compile(path, plan, arch, folder, TELL)
        return compiled if not read_cubin(compiled.artifacts.CUBIN).stack else _compile(path, plan, arch, folder, TELL)


def _compile(path: Path, plan: KernelPlan, arch: str, folder: str, *more: str) -> Any:
    import cutlass.cute as cute
    from cutlass.cute.runtime import make_fake_stream

    module = import_file(path)
    attributes: Mapping[str, int | None] = getattr(module, "ATTRS", {})
    hook = _kernel_attributes(attributes.get("cluster") if plan.config.stamp_cluster else None, attributes.get("maxnreg"))
    return cute.compile(
        module.launch,
        *fake_tensors(launch_args(plan.args)),
        make_fake_stream(use_tvm_ffi_env_stream=True),
        options=" ".join((*OPTIONS, *more, f"--gpu-arch {arch}", f"--dump-dir={folder}")),
        trace_finalize_hooks=hook,
    )


def import_file(path: Path) -> ModuleType:
    """Import a generated file under its own stem. Once per process: its name says its content."""
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # before it runs: CuTe DSL looks its functions' source up by module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def fake_tensors(args: Sequence[Arg]) -> list[Any]:
    """A CuTe stand-in per argument: row-major, aligned as promised; a named size is one run-time symbol wherever it appears.

    A stride that depends on a named size is a symbol of its own, without a promise: `launch` compares it with what the sizes say.
    """
    import cutlass
    import cutlass.cute as cute
    from cutlass.cute.runtime import make_fake_tensor

    dtypes = {"bf16": cutlass.BFloat16, "f16": cutlass.Float16, "f32": cutlass.Float32, "i32": cutlass.Int32, "i64": cutlass.Int64}
    symbols = {dim: cute.sym_int64(symbol=dim) for arg in args for dim in arg.shape if isinstance(dim, str)}
    tensors = []
    for arg in args:
        strides: list[Any] = []
        for at in range(len(arg.shape)):
            inner = arg.shape[at + 1 :]
            known = [dim for dim in inner if isinstance(dim, int)]
            strides.append(math.prod(known) if len(known) == len(inner) else cute.sym_int64(symbol=f"{arg.name}_stride{at}"))
        shape = tuple(symbols[dim] if isinstance(dim, str) else dim for dim in arg.shape)
        tensors.append(make_fake_tensor(dtypes[arg.dtype], shape, tuple(strides), assumed_align=arg.align))
    return tensors


def _kernel_attributes(cluster: int | None, maxnreg: int | None) -> Callable[..., None]:
    """A hook that writes the cluster size and the register limit on the kernel: attributes which the launch API does not offer."""

    def hook(dsl: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        from cutlass._mlir import ir

        def visit(op: Any) -> Any:
            if op.name == "cuda.kernel":
                if cluster:
                    op.attributes["nvvm.cluster_dim"] = ir.Attribute.parse(f"array<i32: {cluster},1,1>")
                if maxnreg:
                    op.attributes["nvvm.maxnreg"] = ir.Attribute.parse(f"{maxnreg} : i32")
            return ir.WalkResult.ADVANCE

        getattr(module, "operation", module).walk(visit)

    return hook


def load(path: Path, symbol: str) -> Callable[..., None]:
    """The function of an object file, taking torch tensors. About 2 ms; nothing touches a GPU before the first call."""
    import cutlass.cute as cute

    module = cute.runtime.load_module(str(path), enable_tvm_ffi=True)
    function: Callable[..., None] = getattr(module, symbol)
    return function


def _failed(path: Path, error: Exception) -> CompileFailed:
    """The error in terms of the user's spec: by the nearest `# src[file:line]` at or above the generated line that failed."""
    line = _generated_line(path, error)
    where = f" (line {line})" if line else ""
    summary = next((text for text in _plain(str(error)).splitlines() if text.strip()), "").strip()
    detail = f"{type(error).__name__}: {summary}" if summary else type(error).__name__
    return CompileFailed(source=f"{path}{where}", detail=detail.rstrip("."), src=spec_line(path.read_text(), line) if line else None)


def _generated_line(path: Path, error: BaseException) -> int | None:
    for cause in _causes(error):
        if str(getattr(cause, "filename", "")) == str(path) and isinstance(line := getattr(cause, "line", None), int):
            return line
        frame = cause.__traceback__
        found = None
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == str(path):
                found = frame.tb_lineno
            frame = frame.tb_next
        if found:
            return found
        told = re.search(re.escape(str(path)) + r":(\d+)", str(cause))
        if told:
            return int(told.group(1))
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
