"""Options of stage sft."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from feebcore.config import DETERMINISTIC, Execution, Observation, StageConfig
from feebcore.parts import Part, PartKey, default_part


class SftConfig(StageConfig):
    """Options of stage sft.

    Every step draws `batch_size` fresh problems of the task's training split, with their answers; the loss is over the
    answer and the end token.
    """

    task: Annotated[Part, PartKey("tasks")] = Field(
        default_part("sort"), description="task that supplies the prompts and reference answers; left out: the task that another stage of the recipe names"
    )
    objective: Annotated[Part, PartKey("objectives")] = Field(default_part("completion_only"), description="objective part")
    optimizer: Annotated[Part, PartKey("optimizers")] = Field(default_part("adamw", lr=1e-3), description="optimizer part")
    schedule: Annotated[Part, PartKey("schedules")] = Field(default_part("cosine"), description="learning-rate schedule")
    batch_size: int = Field(128, ge=1, description="examples per optimizer step")
    max_steps: int = Field(200, ge=1, description="optimizer steps")
    grad_clip: float = Field(1.0, ge=0.0, description="maximum global gradient norm; 0: no clipping")
    eval_prompts: int = Field(512, ge=1, description="held-out prompts for the accuracy at the end")
    seed: int = Field(0, ge=0, description="random seed of examples and sampling")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="matmul precision; weights stay fp32; auto: bf16 if the hardware supports it")
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="action if the loss or gradient is not finite")

    device: Execution[Literal["auto", "cpu", "cuda"]] = Field("auto", description="auto: CUDA if available")
    compile: Execution[Literal["auto", "on", "off"]] = Field("off", description="torch.compile")
    threads: Execution[Annotated[int, Field(ge=0)]] = Field(0, description="CPU threads; 0: every CPU this process may use")
    deterministic: Execution[bool | Literal["auto"]] = Field("auto", description=DETERMINISTIC)
    micro_batch: Execution[Annotated[int, Field(ge=0)]] = Field(0, description="examples per forward pass; 0: the whole batch")

    callbacks: Observation[list[Annotated[Part, PartKey("callbacks")]]] = Field(
        default_factory=lambda: [default_part("metrics"), default_part("progress")], validate_default=True, description="callback parts"
    )
    checkpoint_every: Observation[Annotated[int, Field(ge=0)]] = Field(100, description="steps between checkpoints; 0: only at the end")
    keep_checkpoints: Observation[Annotated[int, Field(ge=1)]] = Field(2, description="number of latest checkpoints to keep")
    log_every: Observation[Annotated[int, Field(ge=1)]] = Field(10, description="steps between rows of metrics.jsonl")
