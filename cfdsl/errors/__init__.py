"""One class per mistake: a fixed message, the user's own line, and the remedy.

Every class is a keyword-only record: its fields fill the two fixed sentences `_says` and `_remedy`. `str(error)` is the message, then
`file:line: code` of the line that the user wrote, then the remedy. Independent mistakes are collected and raised together as `Errors`.
"""

from __future__ import annotations

from cfdsl.errors.base import CfdslError, Errors, SourceLine, attempt, is_whole, listed, raise_all, singles
from cfdsl.errors.compiler import AlgorithmUnsupported, CompileFailed, ConfigError, NoLegalConfig, NotLowered, PlanError
from cfdsl.errors.hf import DecodeRefused, NotPatched, PackageMissing, PatchedCopy, PatchRefused, PeerUnsupported, WeightsUnusable
from cfdsl.errors.models import (
    GroupUnsupported,
    HeadDimUnsupported,
    ModelUnreadable,
    ModelUnsupported,
    RowUnsupported,
    UnknownModel,
    WeightsMismatch,
)
from cfdsl.errors.parts import ClusterSizeUnsupported, NoTarget, NotResident, SharedMemoryExceeded, UnknownPart
from cfdsl.errors.placement import ClustersDoNotDivide, NeedsReduce, NothingToSplit, PlacementMismatch, ShardDoesNotDivide, WrongCollective
from cfdsl.errors.runtime import (
    BatchUnsupported,
    CacheFull,
    CacheUnusable,
    CapacityExceeded,
    ColdCompileInCapture,
    DisassemblerMissing,
    LengthOutOfRange,
    MarksMissing,
    NotTraced,
    RecordingFull,
    SequenceSuperseded,
    TokenOutOfRange,
)
from cfdsl.errors.spec import (
    ArgumentError,
    DtypeMismatch,
    DuplicateName,
    InvalidGraph,
    ShapeMismatch,
    TextSyntax,
    TraceError,
    UnknownOption,
)

__all__ = [
    "AlgorithmUnsupported",
    "ArgumentError",
    "BatchUnsupported",
    "CacheFull",
    "CacheUnusable",
    "CapacityExceeded",
    "CfdslError",
    "ClusterSizeUnsupported",
    "ClustersDoNotDivide",
    "ColdCompileInCapture",
    "CompileFailed",
    "ConfigError",
    "DecodeRefused",
    "DisassemblerMissing",
    "DtypeMismatch",
    "DuplicateName",
    "Errors",
    "GroupUnsupported",
    "HeadDimUnsupported",
    "InvalidGraph",
    "LengthOutOfRange",
    "MarksMissing",
    "ModelUnreadable",
    "ModelUnsupported",
    "NeedsReduce",
    "NoLegalConfig",
    "NoTarget",
    "NotLowered",
    "NotPatched",
    "NotResident",
    "NotTraced",
    "NothingToSplit",
    "PackageMissing",
    "PatchRefused",
    "PatchedCopy",
    "PeerUnsupported",
    "PlacementMismatch",
    "PlanError",
    "RecordingFull",
    "RowUnsupported",
    "SequenceSuperseded",
    "ShapeMismatch",
    "ShardDoesNotDivide",
    "SharedMemoryExceeded",
    "SourceLine",
    "TextSyntax",
    "TokenOutOfRange",
    "TraceError",
    "UnknownModel",
    "UnknownOption",
    "UnknownPart",
    "WeightsMismatch",
    "WeightsUnusable",
    "WrongCollective",
    "attempt",
    "is_whole",
    "listed",
    "raise_all",
    "singles",
]
