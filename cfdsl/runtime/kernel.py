"""A compiled kernel: call it with torch tensors, or look at any stage of how it came about."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from cfdsl.compiler.config import Config
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import Arg, KernelPlan
from cfdsl.dsl.interpret import Traffic, count_traffic
from cfdsl.errors import ColdCompileInCapture, NoTarget, NotResident, raise_all
from cfdsl.runtime import artifacts, device, flags, preload, toolchain, torch_op
from cfdsl.runtime.arguments import DTYPES, call_errors, check_arguments, in_order, unchecked_strides
from cfdsl.runtime.cache import Entry
from cfdsl.runtime.contents import content_errors
from cfdsl.runtime.recording import recording
from cfdsl.runtime.timeline import Record

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))  # anything else (a FakeTensor, a subclass) goes through the dispatcher
_modes = torch._C._len_torch_dispatch_stack


class _NotContiguous(Exception):
    pass


class Stages(Mapping[str, str]):
    """The texts of all stages by name; each is made, or read, when it is asked for."""

    def __init__(self, texts: Mapping[str, str], later: Mapping[str, Callable[[], str]]) -> None:
        self._texts, self._later = texts, later

    def __getitem__(self, name: str) -> str:
        if name not in (*self._texts, *self._later):
            raise KeyError(f"there is no stage {name!r}: the stages are {', '.join(self)}")
        return self._later[name]() if name in self._later else self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*(name for name in self._texts if name not in self._later), *self._later))

    def __len__(self) -> int:
        return len({*self._texts, *self._later})


class Kernel:
    """One fusion, compiled for one model, batch, dtype and part.

    Call it with CUDA tensors in the order of `args` (or by name): inputs, weights, caches, outputs. It writes the caches and outputs in
    place and returns None. A call is one launch on torch's current stream: no allocation, no synchronisation, no look at any data, and
    so safe in a CUDA graph. It has a small workspace per device, so one kernel must not run on two streams at the same time.

    A length or position that is out of range lives in device memory, where the host does not look: the kernel clamps it and sets a flag
    that `status()` puts in words. `check()` looks before a call, for whoever can afford to wait.
    """

    def __init__(self, lowered: Any, entry: Entry, source: Path, key: str, *, cold: bool) -> None:
        self.plan: KernelPlan = lowered.plan
        self.part: Part = lowered.part
        self.lowered = lowered
        self.source: str = lowered.source
        self.name = f"{self.plan.name}_{key[:8]}"
        self.key = key
        self.cold = cold
        self.args: tuple[Arg, ...] = tuple(arg for arg in self.plan.args if arg.role != "workspace")
        self.workspace_args: tuple[Arg, ...] = tuple(arg for arg in self.plan.args if arg.role == "workspace")
        self._entry, self._source_path = entry, source
        self._names = tuple(arg.name for arg in self.args)
        self._loose = unchecked_strides(self.args)
        self._function: Any = None
        self._workspace: tuple[Any, ...] = ()
        self._device: int | None = None
        self._workspaces: dict[int, tuple[torch.Tensor, ...]] = {}
        self.op = torch_op.register(self.name, self.args, self._launch)

    # ---- calling ------------------------------------------------------------------------------------------------------------------

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> None:
        """Launch on the current stream. Raises one error that names every bad argument; see the class for what a call does."""
        if kwargs or not args:
            args = self._given(args, kwargs)
        if is_dynamo_compiling():
            self.op(*args)
        elif type(args[0]) not in _PLAIN or _modes():
            self._dispatched(args)
        else:
            self._launch(args)

    def _dispatched(self, args: tuple[torch.Tensor, ...]) -> None:
        """Through the op; which would not say in our words what is no tensor at all."""
        if not all(isinstance(arg, torch.Tensor) for arg in args):
            whole = all(type(arg) in _PLAIN for arg in args if isinstance(arg, torch.Tensor))  # others may have no storage to look at
            check_arguments(self.args, args, device_type="cuda" if whole else "meta")
        self.op(*args)

    def _given(self, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """A call's arguments in calling order. All of them by name is the common case, and need not go through what explains mistakes."""
        if len(kwargs) == len(self._names) and not args:
            try:
                return tuple([kwargs[name] for name in self._names])
            except KeyError:
                pass  # in_order says which
        return in_order(self.args, args, kwargs)

    def bind(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Callable[[], None]:
        """A function that launches the kernel with these very tensors, on the stream that is current then: for eager loops.

        Arguments are checked, and described to the launcher, now and not in every call: about half of a call's host time. The function
        keeps the tensors' memory alive; what is in it may change, where it lies may not. Raises as a call does.
        """
        import tvm_ffi

        args = self._given(args, kwargs)
        check_arguments(self.args, args)
        self.prepare(args[0].device.index)
        first = args[0]  # as a torch tensor: that is where the launcher finds the current stream
        rest = (*(tvm_ffi.from_dlpack(arg.detach()) for arg in args[1:]), *self._workspace)

        def launch() -> None:
            self._function(first, *rest)

        return launch

    def _launch(self, args: tuple[torch.Tensor, ...]) -> None:
        """The launch itself: what the op runs, and what a plain call runs without the dispatcher in between.

        One tuple and not `*args`, which would be unpacked and packed once more: a fifth of what a call takes before the launch.
        """
        try:
            for index in self._loose:
                if not args[index].is_contiguous():
                    raise _NotContiguous
            return self._function(*args, *self._workspace)
        except Exception as caught:
            error = caught
        self._refused(args, error)

    def _refused(self, args: tuple[torch.Tensor, ...], error: Exception) -> None:
        """A launch did not happen: say which arguments are wrong, or get ready on their device and launch, or pass the error on."""
        if any(isinstance(arg, torch.Tensor) and arg.device.type == "meta" for arg in args):
            return self.op(*args)
        check_arguments(self.args, args)
        index = args[0].device.index
        if self._function is not None and index == self._device:
            raise error
        self.prepare(index)
        self._function(*args, *self._workspace)

    def prepare(self, index: int | None = None) -> None:
        """Get ready on CUDA device `index` (default: the current one), as the first call does: load, check residency, allocate.

        NoTarget without a GPU; ColdCompileInCapture while a CUDA graph is captured; NotResident if a grid barrier could wait for clusters
        that have no room.
        """
        import tvm_ffi

        if index is None and not torch.cuda.is_available():
            raise NoTarget(needs=f"a GPU to run kernels on (this one was compiled for {self.part.name})")
        index = torch.cuda.current_device() if index is None else index
        if index not in self._workspaces:
            if device.capturing():
                raise ColdCompileInCapture(kernel=self.name)
            self._check_residency(index)
            self._load()
            self._workspaces[index] = self._allocate(index)
            preload.onto_device(self._function, self.args, self._workspaces[index], index)
        # Described once and not in every call: of six workspaces 0.9 us of 9.2, measured on the host of an H200, 2026-11-23.
        self._device, self._workspace = index, tuple(tvm_ffi.from_dlpack(workspace) for workspace in self._workspaces[index])

    @contextlib.contextmanager
    def launching(self, make: Callable[[Callable[..., None]], Callable[..., None]]) -> Iterator[None]:
        """While it is open, calls launch what `make` makes of the compiled function, which takes a call's tensors and then the workspaces.

        Gets ready on the current device first (see `prepare`). Not for two threads at a time.
        """
        self.prepare()
        function = self._function
        self._function = make(function)
        try:
            yield
        finally:
            self._function = function

    def _load(self) -> None:
        if self._function is None:
            self._function = toolchain.load(self._entry.path("object"), self._entry.meta["symbol"])

    def _allocate(self, index: int) -> tuple[torch.Tensor, ...]:
        shapes = [tuple(int(dim) for dim in arg.shape) for arg in self.workspace_args]
        made = [torch.zeros(shape, dtype=DTYPES[arg.dtype], device=f"cuda:{index}") for arg, shape in zip(self.workspace_args, shapes)]
        torch.cuda.current_stream(index).synchronize()  # the first launch may be on another stream
        return tuple(made)

    def _check_residency(self, index: int) -> None:
        if not self.plan.needs_residency:
            return
        config = self.plan.config
        room = device.resident_clusters(
            self._entry.path("cubin").read_bytes(), self.binary.kernel, cluster=config.cluster_size, clusters=config.clusters,
            threads=self.plan.threads, smem=self.plan.smem_bytes, device=index,
        )  # fmt: skip
        if room < config.clusters:
            name = torch.cuda.get_device_name(index)
            raise NotResident(clusters=config.clusters, resident=room, size=config.cluster_size, part=name, ctas_per_sm=config.ctas_per_sm)

    def check(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> None:
        """Raise one error with everything that is wrong with a call: its arguments, and the lengths and positions in them.

        Launches nothing. It reads lengths and positions from the device, and so synchronises: not for the hot path, and not for a CUDA
        graph's capture, which it would break. ArgumentError; LengthOutOfRange; CacheFull where the call would append to a full cache.
        """
        errors = call_errors(self.args, args, kwargs)
        wrong = {error.argument for error in errors}
        given = dict(zip(self._names, args)) | kwargs
        sound = {name: given[name] for name in self._names if name not in wrong}
        raise_all([*errors, *content_errors(self.plan, sound)])

    def status(self, clear: bool = False) -> tuple[str, ...]:
        """What the kernel flagged on any device since the flags were last cleared, in words; empty if nothing. Synchronises.

        clear   zero the workspaces too, as they were at first: the flags, and a grid barrier that timed out is in step again
        """
        word = 0
        place = next((at for at, arg in enumerate(self.workspace_args) if arg.name == flags.STATUS_ARG), None)
        if place is None:
            return ()
        for workspace in self._workspaces.values():
            sync = workspace[place]
            if sync.is_cuda:
                torch.cuda.synchronize(sync.device)  # launches may be on any stream
            word |= int(sync[flags.STATUS_WORD].item())
            if clear:
                for each in workspace:  # after a time-out the barrier's word has no defined phase, and sums that were begun are left over
                    each.zero_()
                if sync.is_cuda:
                    torch.cuda.synchronize(sync.device)
        return flags.in_words(word)

    def trace(self, *args: torch.Tensor, warmup: int = 3, **kwargs: torch.Tensor) -> list[Record]:
        """Launch, and return when each CTA did each step: of the last launch, after `warmup` others behind which it starts under PDL.

        For a kernel that was compiled with trace=True (NotTraced otherwise), on the current CUDA device. Synchronises. `stage_times` and
        `chrome_trace` of cfdsl.runtime.timeline make a table and a file of it; `cfdsl.runtime.recording` records several kernels.
        """
        with recording([self], warmup + 1) as made:
            for _ in range(warmup + 1):
                self(*args, **kwargs)
        return made.timeline()[-1][1]

    # ---- looking ------------------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The schedule that the kernel was made with."""
        return self.plan.config

    def traffic(self, sizes: Mapping[str, int] | None = None) -> Traffic:
        """The bytes of one launch, from shapes alone. sizes: named dimensions ("tokens": the cache's capacity, "positions"), and "length":
        the tokens in the cache before the launch (default: as full as it can be)."""
        return count_traffic(self.lowered.placed, sizes)

    @functools.cached_property
    def stages(self) -> Stages:
        """Every stage's text: traced, config, placed, plan, check, source, ptx, sass."""
        return Stages(self.lowered.stages, {"source": lambda: self.source, "ptx": lambda: self.ptx, "sass": lambda: self.sass})

    @functools.cached_property
    def ptx(self) -> str:
        """The kernel's PTX."""
        return self._entry.path("ptx").read_text()

    @functools.cached_property
    def sass(self) -> str:
        """The kernel's machine code, disassembled (by nvdisasm; DisassemblerMissing without it)."""
        return artifacts.disassemble(self._entry.path("cubin"))

    @functools.cached_property
    def binary(self) -> artifacts.Binary:
        """The facts in the cubin."""
        return artifacts.read_cubin(self._entry.path("cubin").read_bytes())

    @property
    def registers(self) -> int:
        """Registers per thread."""
        return int(self._entry.meta["registers"])

    @property
    def spills(self) -> int | None:
        """Bytes per thread that the assembler's code stores to the stack and loads back, both counted; None if it did not say."""
        spilled: int | None = self._entry.meta["spills"]
        return spilled

    @property
    def stack(self) -> int:
        """Bytes of stack per thread: local arrays and spills."""
        return int(self._entry.meta["stack"])

    @property
    def compile_seconds(self) -> float:
        """How long this kernel's compilation took, now or when it was put into the cache (see `cold`)."""
        return float(self._entry.meta["compile_seconds"])

    @property
    def paths(self) -> dict[str, Path]:
        """Where the generated source, the object, the PTX and the cubin lie."""
        return {"source": self._source_path, **{kind: self._entry.path(kind) for kind in ("object", "ptx", "cubin")}}

    def __repr__(self) -> str:
        return f"<Kernel {self.name}: {self.plan.model and f'{self.plan.model}, '}{self.plan.dtype}, {self.plan.mesh}, {self.part.name}>"
