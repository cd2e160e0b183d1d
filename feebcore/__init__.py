"""feeb's engine. `import feebcore as feeb` is what plugins and notebooks write; importing it loads next to nothing, and no torch ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feebcore.api import Run, open_model, open_run, runs
    from feebcore.config import AlgorithmConfig, DataOrderConfig, Execution, LogitsProcessorConfig, NoOptions, Observation, PartConfig, StageConfig
    from feebcore.differences import diff
    from feebcore.errors import DataError, FeebError
    from feebcore.hookspecs import hookimpl
    from feebcore.parts import Part, PartKey, default_part
    from feebcore.protocols import BuildContext
    from feebcore.registry import collect
    from feebcore.specs import (
        API_VERSION,
        AlgorithmSpec,
        ArchitectureSpec,
        AttentionSpec,
        BenchmarkSpec,
        BlockSpec,
        CallbackSpec,
        DataOrderSpec,
        EmbeddingSpec,
        ExporterSpec,
        FeedforwardSpec,
        FilterSpec,
        ImporterSpec,
        InitializationSpec,
        LawSpec,
        LMHeadSpec,
        LogitsProcessorSpec,
        LRScalingSpec,
        Need,
        NormSpec,
        ObjectiveSpec,
        OptimizerSpec,
        PackingSpec,
        PartSpec,
        PlannerSpec,
        PositionSpec,
        SamplerSpec,
        ScheduleSpec,
        SourceSpec,
        StackSpec,
        StageSpec,
        TaskSpec,
        TokenizerSpec,
    )

__version__ = "0.1.0"

_HOMES = {
    "feebcore.api": ("Run", "open_model", "open_run", "runs"),
    "feebcore.config": ("AlgorithmConfig", "DataOrderConfig", "LogitsProcessorConfig", "Execution", "NoOptions", "Observation", "PartConfig", "StageConfig"),
    "feebcore.protocols": ("BuildContext",),
    "feebcore.registry": ("collect",),
    "feebcore.parts": ("Part", "PartKey", "default_part"),
    "feebcore.differences": ("diff",),
    "feebcore.errors": ("DataError", "FeebError"),
    "feebcore.hookspecs": ("hookimpl",),
}
"""Where names come from when first used; all others are in feebcore.specs."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'feebcore' has no attribute {name!r}")
    import importlib

    home = next((module for module, names in _HOMES.items() if name in names), "feebcore.specs")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    """What completion in a notebook lists: the public names and nothing else."""
    return sorted([*__all__, "__version__"])


__all__ = [
    "API_VERSION",
    "AlgorithmConfig",
    "AlgorithmSpec",
    "ArchitectureSpec",
    "AttentionSpec",
    "BenchmarkSpec",
    "BlockSpec",
    "BuildContext",
    "CallbackSpec",
    "DataError",
    "DataOrderConfig",
    "DataOrderSpec",
    "EmbeddingSpec",
    "Execution",
    "ExporterSpec",
    "FeebError",
    "FeedforwardSpec",
    "FilterSpec",
    "ImporterSpec",
    "InitializationSpec",
    "LMHeadSpec",
    "LRScalingSpec",
    "LawSpec",
    "LogitsProcessorConfig",
    "LogitsProcessorSpec",
    "Need",
    "NoOptions",
    "NormSpec",
    "ObjectiveSpec",
    "Observation",
    "OptimizerSpec",
    "PackingSpec",
    "Part",
    "PartConfig",
    "PartKey",
    "PartSpec",
    "PlannerSpec",
    "PositionSpec",
    "Run",
    "SamplerSpec",
    "ScheduleSpec",
    "SourceSpec",
    "StackSpec",
    "StageConfig",
    "StageSpec",
    "TaskSpec",
    "TokenizerSpec",
    "collect",
    "default_part",
    "diff",
    "hookimpl",
    "open_model",
    "open_run",
    "runs",
]
