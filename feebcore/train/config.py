"""Options of a training run: the section of stage pretrain, the `train:` key of sweep, the base of sft's. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from feebcore.config import Execution, Observation, Part, Seam, StageConfig, use


class TrainSection(StageConfig):
    """What is trained, on what, how, and what is watched.

    batch_size counts windows of seq_len tokens per optimizer step; micro_batch is how many of them are held at once
    (0: all). A run is a pure function of its identity keys for fixed device, threads, compile and torch version.
    """

    architecture: Annotated[Part, Seam("architectures")] = use("transformer")
    objective: Annotated[Part, Seam("objectives")] = use("next_token")
    optimizer: Annotated[Part, Seam("optimizers")] = use("adamw")
    schedule: Annotated[Part, Seam("schedules")] = use("cosine")
    rate_rule: Annotated[Part, Seam("rate_rules")] | None = None
    packing: Annotated[Part, Seam("packings")] = use("concat")
    order: Annotated[Part, Seam("orders")] = use("shuffled")
    seq_len: int = Field(default=128, ge=1)
    batch_size: int = Field(default=32, ge=1)
    max_steps: int = Field(default=1000, ge=1)
    grad_clip: float = Field(default=1.0, ge=0.0)  # largest global gradient norm; 0 never clips
    seed: int = Field(default=0, ge=0)
    init_from: str = ""  # a model folder, or an artifact with one; empty: from scratch
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    on_bad_step: Literal["stop", "skip"] = "stop"  # when loss or gradient is not finite
    max_bad_steps: int = Field(default=10, ge=1)  # with skip: this many in a row stop the run

    device: Execution[Literal["auto", "cpu", "cuda"]] = "auto"
    compile: Execution[Literal["auto", "on", "off"]] = "auto"
    micro_batch: Execution[Annotated[int, Field(ge=0)]] = 0
    threads: Execution[Annotated[int, Field(ge=0)]] = 0  # 0: every CPU this process may use
    deterministic: Execution[bool] = True

    callbacks: Observation[list[Annotated[Part, Seam("callbacks")]]] = Field(default_factory=lambda: [use("metrics"), use("progress")])
    checkpoint_every: Observation[Annotated[int, Field(ge=0)]] = 200  # steps; 0: only at the end
    keep_checkpoints: Observation[Annotated[int, Field(ge=1)]] = 2
    log_every: Observation[Annotated[int, Field(ge=1)]] = 10
    eval_every: Observation[Annotated[int, Field(ge=0)]] = 200  # steps; 0: only the final score
    eval_tokens: Observation[Annotated[int, Field(ge=1)]] = 16384  # of the fixed held-out sample used while training
    eval_stride: Observation[Annotated[int, Field(ge=0)]] = 0  # new tokens a window in the final score; 0: half of seq_len

    @model_validator(mode="after")
    def _divides(self) -> TrainSection:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.eval_stride > self.seq_len:
            raise ValueError(f"eval_stride: {self.eval_stride} is more than seq_len {self.seq_len}, so tokens would go unscored")
        return self
