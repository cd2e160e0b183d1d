"""The flows of feeb: one a stage, `pipeline`, `stage`, `compare`. The modules here import Prefect; this one does not."""

BUILT_IN = ("download", "tokenizer", "shard", "pretrain", "sweep", "sft", "rl", "evaluate", "report")
"""Stages with a flow of their own, and so a deployment; flow `stage` runs any other."""

NAMES = (*BUILT_IN, "pipeline", "stage", "compare")
"""Every flow, by the name that it has in Prefect."""
