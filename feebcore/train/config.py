"""Options of a training run: the section of stage pretrain, the `train:` key of sweep, the base of sft's. Loads no torch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from feebcore.config import Execution, Observation, StageConfig
from feebcore.files import digest_of, read_json, sha256_file
from feebcore.parts import Part, PartKey, default_part
from feebcore.train.depth_scaling import RATE_RULE, depth_scaled_run
from feebcore.train.parallel_config import ParallelConfig
from feebcore.train.param_groups import ParamGroupOverride


class TrainSection(StageConfig):
    """What is trained, on what, how, and what is watched.

    batch_size counts windows of seq_len tokens per optimizer step; micro_batch is how many of them are held at once
    (0: all). A run is a pure function of its identity keys for fixed device, threads, compile and torch version.
    """

    architecture: Annotated[Part, PartKey("architectures")] = Field(default_part("transformer"), description="what is trained")
    objective: Annotated[Part, PartKey("objectives")] = Field(default_part("next_token"), description="what is minimized")
    optimizer: Annotated[Part, PartKey("optimizers")] = Field(default_part("adamw"), description="how weights follow gradients; rates are options of the part")
    schedule: Annotated[Part, PartKey("schedules")] = Field(default_part("cosine"), description="multiplier on all rates as a function of the step")
    lr_scaling: Annotated[Part, PartKey("lr_scalings")] | None = Field(None, description="scales rates that were found at another size")
    packing: Annotated[Part, PartKey("packings")] = Field(default_part("concat"), description="documents to training windows")
    data_order: Annotated[Part, PartKey("data_orders")] = Field(default_part("shuffled"), description="which window comes when")
    depth: int | None = Field(
        None,
        ge=1,
        description="one number for model and run: goes to the architecture (default depth), and sets those of batch_size, max_steps and lr_scaling that are not given",
    )
    tokens_per_parameter: float = Field(
        20.0, gt=0.0, description="with depth: tokens of the run for each weight of its blocks, 12 num_layers d_model^2 of them"
    )
    seq_len: int = Field(128, ge=1, description="tokens of a window, and the longest context of the model")
    batch_size: int = Field(32, ge=1, description="windows an optimizer step")
    max_steps: int = Field(1000, ge=1, description="optimizer steps")
    momentum_schedule: Annotated[Part, PartKey("schedules")] | None = Field(None, description="multiplier on the momentum (or the first beta)")
    weight_decay_schedule: Annotated[Part, PartKey("schedules")] | None = Field(None, description="multiplier on the weight decay")
    param_groups: list[ParamGroupOverride] = Field([], description="rules for parameters by name and role: other rates, other decay, frozen")
    grad_clip: float = Field(1.0, ge=0.0, description="largest global gradient norm; 0 never clips")
    ema_decay: float = Field(0.0, ge=0.0, lt=1.0, description="of an average of the weights, which is then what is scored and saved; 0: none")
    overfit_batches: int = Field(0, ge=0, description="train on the first so many batches over and over, to see whether training works at all; 0: on all")
    seed: int = Field(0, ge=0, description="of weights, order and dropout; default: the recipe's seed")
    init_from: Execution[str] = Field(
        "", description="a model folder, or an artifact with one, whose weights are the start, relative to the recipe; empty: from scratch"
    )
    init_content: str = Field("", description="digest of these weights; filled in, so that other weights make another model")
    branch_from: Execution[str] = Field(
        "", description="an artifact of pretrain whose run goes on from here, weights, optimizer and place in the data, with what this recipe says"
    )
    branch_step: int = Field(0, ge=0, description="checkpoint of that run to go on from; 0: its newest")
    branch_content: str = Field("", description="digest of that checkpoint; filled in")
    precision: Literal["auto", "fp32", "bf16", "fp8"] = Field(
        "auto", description="of matrix products, weights stay fp32; auto: bf16 where the hardware has it; fp8: CUDA, with torchao"
    )
    on_bad_step: Literal["stop", "skip", "rollback"] = Field(
        "stop", description="what follows a bad step (loss or gradient not finite, or a spike): rollback goes on from an earlier state with later batches"
    )
    spike_factor: float = Field(
        0.0, ge=0.0, description="a loss so many standard deviations above the mean of the last 50 steps is bad too; 0: only what is not finite"
    )
    max_bad_steps: int = Field(10, ge=1, description="so many bad steps in a row, or so many times rolled back, stop the run")
    rollback_every: int = Field(100, ge=1, description="with rollback: steps between the states to go back to")
    eval_stride: int = Field(0, ge=0, description="new tokens a window in the final score; 0: half of seq_len")

    device: Execution[Literal["auto", "cpu", "cuda"]] = Field("auto", description="auto: CUDA where there is some")
    compile: Execution[Literal["auto", "on", "off"]] = Field("auto", description="auto: when the run is long enough to earn back the compiling")
    parallel: Execution[ParallelConfig] = Field(default_factory=ParallelConfig, description="several processes for one run")
    micro_batch: Execution[int] = Field(0, ge=0, description="windows held at once by a process, the rest is accumulated; 0: all, or as many as fit")
    activation_checkpointing: Execution[bool] = Field(False, description="compute each block again in the backward pass: less memory, a third more time")
    prefetch: Execution[int] = Field(2, ge=0, description="batches made ahead by a thread; 0: none")
    threads: Execution[int] = Field(0, ge=0, description="CPU threads; 0: as many as this process may use")
    deterministic: Execution[bool] = Field(True, description="the same bits every time; costs a few percent")

    callbacks: Observation[list[Annotated[Part, PartKey("callbacks")]]] = Field(
        default_factory=lambda: [default_part("metrics"), default_part("progress")], description="loggers and probes, in the order in which they are called"
    )
    checkpoint_every: Observation[int] = Field(200, ge=0, description="steps between checkpoints; 0: only one at the end")
    keep_checkpoints: Observation[int] = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_every: Observation[int] = Field(0, ge=0, description="checkpoints of steps divisible by this are kept for good, to branch from; 0: none")
    keep_best: Observation[int] = Field(0, ge=0, description="checkpoints with the lowest loss on held-out text that are kept for good; 0: none")
    async_checkpoints: Observation[bool] = Field(True, description="write checkpoints beside the training")
    log_every: Observation[int] = Field(10, ge=1, description="steps a row of the training log")
    eval_every: Observation[int] = Field(200, ge=0, description="steps between looks at held-out text; 0: only the final score")
    eval_tokens: Observation[int] = Field(16384, ge=1, description="size of such a look, always the same text")

    @model_validator(mode="before")
    @classmethod
    def _the_dial_is_the_architectures(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("depth") is None:
            return data
        chosen = data.get("architecture", {})
        chosen = {"name": chosen} if isinstance(chosen, str) else chosen
        if isinstance(chosen, dict):
            chosen = {"name": "depth_scaled", "depth": data["depth"], **chosen}
        return {"lr_scaling": RATE_RULE, **data, "architecture": chosen}

    @model_validator(mode="after")
    def _the_dial_sets_the_run(self) -> TrainSection:
        if self.depth is None:
            return self
        sizes = self.architecture.config
        if (given := getattr(sizes, "depth", None)) != self.depth:
            raise ValueError(f"depth: {self.depth}, but the architecture's is {given}; give one of them")
        batch_size = self.batch_size if "batch_size" in self.model_fields_set else None
        found = depth_scaled_run(sizes.num_layers, sizes.d_model, self.seq_len, self.tokens_per_parameter, batch_size)  # type: ignore[attr-defined]
        for key, value in zip(("batch_size", "max_steps"), found, strict=True):
            if key not in self.model_fields_set:
                object.__setattr__(self, key, value)
        return self

    @field_validator("init_from", "branch_from")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        folder = Path((info.context or {}).get("recipe_folder", "."))
        return str((folder / Path(value).expanduser()).absolute()) if value else ""

    @model_validator(mode="after")
    def _digested(self) -> TrainSection:
        object.__setattr__(self, "init_content", model_digest(Path(self.init_from)) if self.init_from else "")
        object.__setattr__(self, "branch_content", self._branch_digest())
        return self

    def _branch_digest(self) -> str:
        """Of the checkpoint to branch from; as it was when the run began, where the trunk has dropped it since."""
        path = checkpoint_of(Path(self.branch_from), self.branch_step) if self.branch_from else None
        return checkpoint_digest(path) if path else self.branch_content if self.branch_from else ""

    @model_validator(mode="after")
    def _divides(self) -> TrainSection:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.eval_stride > self.seq_len:
            raise ValueError(f"eval_stride: {self.eval_stride} is more than seq_len {self.seq_len}, so tokens would go unscored")
        if self.branch_step and not self.branch_from:
            raise ValueError(f"branch_step: {self.branch_step} is a checkpoint of no run; set branch_from as well, or leave it out")
        if self.init_from and self.branch_from:
            raise ValueError("init_from and branch_from: a run begins with other weights, or goes on from another run, not both")
        return self

    def num_processes(self) -> int:
        return self.parallel.num_processes(self.device)


def checkpoint_of(folder: Path, step: int) -> Path | None:
    """The checkpoint of `step` (0: the newest) in an artifact's folder, None when there is none."""
    found = sorted((p for p in (folder / "checkpoints").glob("step-*") if (p / "state.json").is_file()), reverse=True)
    return next((p for p in found if not step or p.name == f"step-{step:08d}"), None)


def checkpoint_digest(path: Path) -> str:
    """Of the step and the tensors of a checkpoint."""
    state = read_json(path / "state.json")
    return digest_of([state["step"], {name: entry["sha256"] for name, entry in state["files"].items()}])


def model_digest(folder: Path) -> str:
    """Of the files that make a model; empty when there is none, which the stage's check reports."""
    model = folder / "model" if (folder / "model").is_dir() else folder
    files = [model / name for name in ("model.json", "model.safetensors")]
    if not all(file.is_file() for file in files):
        return ""
    return digest_of([_file_digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


@functools.lru_cache(maxsize=64)
def _file_digest(file: Path, size: int, changed: int) -> str:
    return sha256_file(file)
