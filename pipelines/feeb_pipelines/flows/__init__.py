"""One flow a stage, and `pipeline` that chains them. The modules import Prefect; this one does not."""

BUILT_IN = ("download", "tokenizer", "shard", "pretrain", "sweep", "sft", "rl", "evaluate", "report")
"""Stages with a flow file of their own."""
