"""Options of a training run: the section of stage pretrain, the `train:` key of sweep, the base of sft's. Loads no torch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from feebcore.config import Execution, Observation, Part, Seam, StageConfig, use
from feebcore.files import digest_of, sha256_file


class TrainSection(StageConfig):
    """What is trained, on what, how, and what is watched.

    batch_size counts windows of seq_len tokens per optimizer step; micro_batch is how many of them are held at once
    (0: all). A run is a pure function of its identity keys for fixed device, threads, compile and torch version.
    """

    architecture: Annotated[Part, Seam("architectures")] = Field(use("transformer"), description="what is trained")
    objective: Annotated[Part, Seam("objectives")] = Field(use("next_token"), description="what is minimised")
    optimizer: Annotated[Part, Seam("optimizers")] = Field(use("adamw"), description="how weights follow gradients; rates are options of the part")
    schedule: Annotated[Part, Seam("schedules")] = Field(use("cosine"), description="multiplier on all rates as a function of the step")
    rate_rule: Annotated[Part, Seam("rate_rules")] | None = Field(None, description="scales rates that were found at another size")
    packing: Annotated[Part, Seam("packings")] = Field(use("concat"), description="documents to training windows")
    order: Annotated[Part, Seam("orders")] = Field(use("shuffled"), description="which window comes when")
    seq_len: int = Field(128, ge=1, description="tokens of a window, and the longest context of the model")
    batch_size: int = Field(32, ge=1, description="windows an optimizer step")
    max_steps: int = Field(1000, ge=1, description="optimizer steps")
    grad_clip: float = Field(1.0, ge=0.0, description="largest global gradient norm; 0 never clips")
    seed: int = Field(0, ge=0, description="of weights, order and dropout; default: the recipe's seed")
    init_from: Execution[str] = Field(
        "", description="a model folder, or an artifact with one, whose weights are the start, relative to the recipe; empty: from scratch"
    )
    init_content: str = Field("", description="digest of these weights; filled in, so that other weights make another model")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of matrix products, weights stay fp32; auto: bf16 where the hardware has it")
    on_bad_step: Literal["stop", "skip"] = Field("stop", description="what happens when loss or gradient is not finite")
    max_bad_steps: int = Field(10, ge=1, description="with skip: so many in a row stop the run")
    eval_stride: int = Field(0, ge=0, description="new tokens a window in the final score; 0: half of seq_len")

    device: Execution[Literal["auto", "cpu", "cuda"]] = Field("auto", description="auto: CUDA where there is some")
    compile: Execution[Literal["auto", "on", "off"]] = Field("auto", description="auto: when the run is long enough to earn back the compiling")
    micro_batch: Execution[int] = Field(0, ge=0, description="windows held at once, the rest is accumulated; 0: all")
    threads: Execution[int] = Field(0, ge=0, description="CPU threads; 0: as many as this process may use")
    deterministic: Execution[bool] = Field(True, description="the same bits every time; costs a few percent")

    callbacks: Observation[list[Annotated[Part, Seam("callbacks")]]] = Field(
        default_factory=lambda: [use("metrics"), use("progress")], description="loggers and probes, in the order in which they are called"
    )
    checkpoint_every: Observation[int] = Field(200, ge=0, description="steps between checkpoints; 0: only one at the end")
    keep_checkpoints: Observation[int] = Field(2, ge=1, description="newest checkpoints that are kept")
    log_every: Observation[int] = Field(10, ge=1, description="steps a row of the training log")
    eval_every: Observation[int] = Field(200, ge=0, description="steps between looks at held-out text; 0: only the final score")
    eval_tokens: Observation[int] = Field(16384, ge=1, description="size of such a look, always the same text")

    @field_validator("init_from")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        folder = Path((info.context or {}).get("recipe_folder", "."))
        return str((folder / Path(value).expanduser()).absolute()) if value else ""

    @model_validator(mode="after")
    def _digested(self) -> TrainSection:
        object.__setattr__(self, "init_content", _model_digest(Path(self.init_from)) if self.init_from else "")
        return self

    @model_validator(mode="after")
    def _divides(self) -> TrainSection:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.eval_stride > self.seq_len:
            raise ValueError(f"eval_stride: {self.eval_stride} is more than seq_len {self.seq_len}, so tokens would go unscored")
        return self


def _model_digest(folder: Path) -> str:
    """Of the files that make a model; empty when there is none, which the stage's check reports."""
    model = folder / "model" if (folder / "model").is_dir() else folder
    files = [model / name for name in ("model.json", "model.safetensors")]
    if not all(file.is_file() for file in files):
        return ""
    return digest_of([_file_digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


@functools.lru_cache(maxsize=64)
def _file_digest(file: Path, size: int, changed: int) -> str:
    return sha256_file(file)
