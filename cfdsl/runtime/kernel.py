"""A compiled kernel, to be called with torch tensors."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from cfdsl.compiler.launch import launch_args, places
from cfdsl.compiler.plan import Arg
from cfdsl.errors import ColdCompileInCapture, NoTarget, NotResident, raise_all
from cfdsl.runtime import device, flags, preload, toolchain, torch_op
from cfdsl.runtime.arguments import call_errors, check_arguments, in_order
from cfdsl.runtime.cache import Entry
from cfdsl.runtime.compiled import Compiled
from cfdsl.runtime.contents import content_errors
from cfdsl.runtime.recording import recording
from cfdsl.runtime.timeline import Record

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))  # anything else (a FakeTensor, a subclass) goes through the dispatcher
_modes = torch._C._len_torch_dispatch_stack


def _described(tensor: torch.Tensor) -> Any:
    """A tensor as the launcher sees it."""
    import tvm_ffi

    return tvm_ffi.from_dlpack(tensor.detach())


class Kernel(Compiled):
    """One fusion, compiled for one model, batch, dtype and part.

    Call it with CUDA tensors in the order of `args` (or by name): inputs, weights, caches, outputs. It writes the caches and outputs in
    place and returns None. A call is one launch on torch's current stream: no allocation, no synchronisation, no look at any data, and
    so safe in a CUDA graph. It has a small workspace per device, so one kernel must not run on two streams at the same time.

    A length or position that is out of range lives in device memory, where the host does not look: the kernel clamps it and sets a flag
    that `status()` puts in words. `check()` looks before a call, for whoever can afford to wait. What it was made from and what came of
    it can be looked at: `stages`, `plan`, `source`, `ptx`, `sass`, `registers`, ...; see `Compiled`.
    """

    def __init__(self, lowered: Any, entry: Entry, source: Path, key: str, *, cold: bool) -> None:
        super().__init__(lowered, entry, source, key, cold=cold)
        self.args: tuple[Arg, ...] = tuple(arg for arg in self.plan.args if arg.role != "workspace")
        self.workspace_args: tuple[Arg, ...] = tuple(arg for arg in launch_args(self.plan.args) if arg.role == "workspace")
        self._names = tuple(arg.name for arg in self.args)
        self._function: Any = None
        self._workspace: tuple[Any, ...] = ()
        self._device: int | None = None
        self._workspaces: dict[int, tuple[torch.Tensor, ...]] = {}
        self.op = torch_op.register(self.name, self.args, self._launch)

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

    def bind(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Callable[..., None]:
        """A function that launches the kernel with these very tensors, on the stream that is current then: for eager loops.

        Those that are left out it takes in every call, in the order of `args` or by name: a layer's weights and caches can be bound once,
        and its input given each time. What is bound is checked and described to the launcher now and not in every call. The function keeps
        its memory alive; what is in it may change, where it lies may not. Raises as a call does.
        """
        raise_all(call_errors(self.args, args, kwargs, some=True))
        bound = {**dict(zip(self._names, args)), **kwargs}
        self.prepare(next((tensor.device.index for tensor in bound.values()), None))
        return self._with_all(bound) if len(bound) == len(self.args) else self._with_some(bound)

    def _with_all(self, bound: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        first, *others = (bound[name] for name in self._names)  # one as a torch tensor: by it the launcher finds the current stream
        tensors = (first, *map(_described, others), *self._workspace)

        def launch() -> None:
            self._function(*tensors)

        return launch

    def _with_some(self, bound: Mapping[str, torch.Tensor]) -> Callable[..., None]:
        left = [arg for arg in self.args if arg.name not in bound]
        known = (*map(_described, bound.values()), *self._workspace)
        names = [*(arg.name for arg in left), *bound]  # in a call they come in this order, and are put in calling order
        put = operator.itemgetter(*map(names.index, self._names), *range(len(names), len(left) + len(known)))

        def launch(*given: torch.Tensor, **named: torch.Tensor) -> None:
            if named or len(given) != len(left):
                given = in_order(left, given, named)
            try:
                return self._function(*put(given + known))
            except Exception as caught:
                error = caught
            everything = {**bound, **dict(zip(names, given))}
            self._refused(tuple(everything[name] for name in self._names), error)

        return launch

    def _launch(self, args: tuple[torch.Tensor, ...]) -> None:
        """The launch itself: what the op runs, and what a plain call runs without the dispatcher in between.

        One tuple and not `*args`, and a sum and not `*args, *self._workspace`: each would be unpacked and packed once more.
        """
        try:
            return self._function(*(args + self._workspace))
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
        # Described once and not in every call.
        self._device, self._workspace = index, tuple(map(_described, self._workspaces[index]))

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
        made = [torch.zeros(tuple(map(int, arg.shape)), dtype=torch.int32, device=f"cuda:{index}") for arg in self.workspace_args]
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
        start = places(self.plan.args).get(flags.STATUS_ARG)
        if start is None:
            return ()
        for workspace in self._workspaces.values():
            sync = workspace[0][start // 4 :]
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
