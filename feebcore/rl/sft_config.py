"""Options of stage sft."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from feebcore.config import Execution, Observation, StageConfig
from feebcore.parts import Part, PartKey, default_part


class SftConfig(StageConfig):
    """Options of stage sft.

    Every step draws `batch_size` fresh problems of the task's training split, with their answers; the loss is over the
    answer and the end token.
    """

    task: Annotated[Part, PartKey("tasks")] = default_part("sort")
    objective: Annotated[Part, PartKey("objectives")] = default_part("completion_only")
    optimizer: Annotated[Part, PartKey("optimizers")] = default_part("adamw", lr=1e-3)
    schedule: Annotated[Part, PartKey("schedules")] = default_part("cosine")
    batch_size: int = Field(128, ge=1)  # examples an optimizer step
    max_steps: int = Field(200, ge=1)
    grad_clip: float = Field(1.0, ge=0.0)  # largest global gradient norm; 0 never clips
    eval_prompts: int = Field(512, ge=1)  # held-out problems of the accuracies at the end
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    on_bad_step: Literal["stop", "skip"] = "stop"  # when loss or gradient is not finite

    device: Execution[Literal["auto", "cpu", "cuda"]] = "auto"
    compile: Execution[Literal["auto", "on", "off"]] = "off"
    threads: Execution[Annotated[int, Field(ge=0)]] = 0  # 0: every CPU this process may use
    deterministic: Execution[bool] = True
    micro_batch: Execution[Annotated[int, Field(ge=0)]] = 0  # examples held at once; 0: all

    callbacks: Observation[list[Annotated[Part, PartKey("callbacks")]]] = Field(
        default_factory=lambda: [default_part("metrics"), default_part("progress")], validate_default=True
    )
    checkpoint_every: Observation[Annotated[int, Field(ge=0)]] = 100  # steps; 0: only at the end
    keep_checkpoints: Observation[Annotated[int, Field(ge=1)]] = 2
    log_every: Observation[Annotated[int, Field(ge=1)]] = 10
