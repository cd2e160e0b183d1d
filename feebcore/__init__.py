"""feeb's engine. `import feebcore as feeb` is what plugins and notebooks write; importing it loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feebcore.config import Execution, NoOptions, Observation, Part, PartConfig, Seam, StageConfig, use
from feebcore.errors import DataError, FeebError
from feebcore.hookspecs import hookimpl
from feebcore.specs import (
    API_VERSION,
    AlgorithmSpec,
    ArchitectureSpec,
    AttentionSpec,
    BenchmarkSpec,
    CallbackSpec,
    DecoderSpec,
    DepthSpec,
    EmbeddingSpec,
    ExporterSpec,
    FeedforwardSpec,
    FilterSpec,
    HeadSpec,
    ImporterSpec,
    InitialisationSpec,
    LawSpec,
    Need,
    NormSpec,
    ObjectiveSpec,
    OptimizerSpec,
    OrderSpec,
    PackingSpec,
    PartSpec,
    PlannerSpec,
    PositionSpec,
    ProcessorSpec,
    RateRuleSpec,
    ScheduleSpec,
    SourceSpec,
    StageSpec,
    TaskSpec,
    TokenizerSpec,
    WiringSpec,
)

if TYPE_CHECKING:
    from feebcore.api import Run, open_model, open_run, runs

__version__ = "0.1.0"

_LAZY = {"Run": "feebcore.api", "open_run": "feebcore.api", "open_model": "feebcore.api", "runs": "feebcore.api"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'feebcore' has no attribute {name!r}")


__all__ = [
    "API_VERSION",
    "AlgorithmSpec",
    "ArchitectureSpec",
    "AttentionSpec",
    "BenchmarkSpec",
    "CallbackSpec",
    "DataError",
    "DecoderSpec",
    "DepthSpec",
    "EmbeddingSpec",
    "Execution",
    "ExporterSpec",
    "FeebError",
    "FeedforwardSpec",
    "FilterSpec",
    "HeadSpec",
    "ImporterSpec",
    "InitialisationSpec",
    "LawSpec",
    "Need",
    "NoOptions",
    "NormSpec",
    "ObjectiveSpec",
    "Observation",
    "OptimizerSpec",
    "OrderSpec",
    "PackingSpec",
    "Part",
    "PartConfig",
    "PartSpec",
    "PlannerSpec",
    "PositionSpec",
    "ProcessorSpec",
    "RateRuleSpec",
    "Run",
    "ScheduleSpec",
    "Seam",
    "SourceSpec",
    "StageConfig",
    "StageSpec",
    "TaskSpec",
    "TokenizerSpec",
    "WiringSpec",
    "hookimpl",
    "open_model",
    "open_run",
    "runs",
    "use",
]
