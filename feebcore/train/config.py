"""Options of a training run: the section of stage pretrain, the `train:` key of sweep, the base of sft's. Loads no torch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from feebcore.config import DETERMINISTIC, Execution, Observation, StageConfig
from feebcore.files import digest_of, expand_user, read_json, sha256_file
from feebcore.parts import Part, PartKey, default_part
from feebcore.train.depth_scaling import LR_SCALING, depth_scaled_run
from feebcore.train.parallel_config import ParallelConfig
from feebcore.train.param_groups import ParamGroupOverride

Policy = Literal["stop", "skip", "rollback"]


class TrainSection(StageConfig):
    """What is trained, on what, how, and what is logged.

    batch_size counts sequences of seq_len tokens per optimizer step; micro_batch is how many of them are in memory at once
    (0: all). A run is a pure function of its identity keys for fixed device, threads, compile and torch version.
    """

    architecture: Annotated[Part, PartKey("architectures")] = Field(default_part("transformer"), description="model architecture")
    objective: Annotated[Part, PartKey("objectives")] = Field(default_part("next_token"), description="training objective")
    optimizer: Annotated[Part, PartKey("optimizers")] = Field(default_part("adamw"), description="update rule; learning rates are its options")
    schedule: Annotated[Part, PartKey("schedules")] = Field(
        default_part("cosine"), description="learning-rate schedule: a multiplier on all learning rates per step"
    )
    lr_scaling: Annotated[Part, PartKey("lr_scalings")] | None = Field(
        None, description="scales learning rates that were tuned at another model, batch size or run length"
    )
    packing: Annotated[Part, PartKey("packings")] = Field(default_part("concat"), description="packs documents into training sequences")
    data_order: Annotated[Part, PartKey("data_orders")] = Field(default_part("shuffled"), description="order of the training sequences")
    depth: int | None = Field(
        None,
        ge=1,
        description="sizes everything by depth: passed to the architecture (default depth_scaled); batch_size, max_steps and lr_scaling are derived unless given",
    )
    tokens_per_parameter: float = Field(20.0, gt=0.0, description="with depth: training tokens per block parameter (12 num_layers d_model^2 of them)")
    seq_len: int = Field(128, ge=1, description="tokens per sequence, and the model's context length")
    batch_size: int = Field(32, ge=1, description="sequences per optimizer step")
    max_steps: int = Field(1000, ge=1, description="optimizer steps")
    stop_at_loss: float = Field(
        0.0, ge=0.0, description="end the run before max_steps once its training loss, the mean of the last 10 steps, is at most this; 0: never"
    )
    stop_when_flat: int = Field(
        0, ge=0, description="end the run before max_steps once that loss has had no new minimum, lower by 1%, for this number of steps; 0: never"
    )
    momentum_schedule: Annotated[Part, PartKey("schedules")] | None = Field(None, description="multiplier on the momentum (or the first beta) per step")
    weight_decay_schedule: Annotated[Part, PartKey("schedules")] | None = Field(None, description="multiplier on the weight decay per step")
    param_groups: list[ParamGroupOverride] = Field([], description="overrides for parameters by name and role: learning rate, weight decay, frozen")
    grad_clip: float = Field(1.0, ge=0.0, description="maximum global gradient norm; 0: no clipping")
    ema_decay: float = Field(
        0.0, ge=0.0, lt=1.0, description="decay of an exponential moving average of the weights, which is then validated and saved; 0: none"
    )
    overfit_batches: int = Field(0, ge=0, description="train on the first N batches only, repeatedly, to test whether the model can overfit; 0: on all data")
    seed: int = Field(0, ge=0, description="seed of initial weights, data order and dropout; default: the recipe's seed")
    init_from: Execution[str] = Field("", description="model folder, or an artifact with one, to start from, relative to the recipe; empty: fresh weights")
    init_content: str = Field("", description="hash of these weights; set automatically")
    branch_from: Execution[str] = Field(
        "", description="pretrain artifact to branch from: continues its weights, optimizer state and data position with this recipe's options"
    )
    branch_step: int = Field(0, ge=0, description="checkpoint step of that run to branch from; 0: its newest")
    branch_content: str = Field("", description="hash of that checkpoint; set automatically")
    precision: Literal["auto", "fp32", "bf16", "fp8"] = Field(
        "auto", description="matmul precision, weights stay fp32; auto: bf16 where the hardware supports it; fp8: CUDA, compiled, with torchao (feeb[fp8])"
    )
    on_nonfinite: Policy = Field(
        "stop", description="if loss or gradient are not finite: stop the run; skip the update; rollback: continue from an earlier state with later batches"
    )
    on_loss_spike: Policy = Field("stop", description="if the loss is a spike, see spike_factor: stop, skip or rollback")
    spike_factor: float = Field(
        0.0, ge=0.0, description="a spike is a loss more than N standard deviations above the mean of the last 50 steps; 0: nothing is a spike"
    )
    max_recoveries: int = Field(10, ge=1, description="stop the run after N skipped steps in a row, or N rollbacks")
    rollback_every: int = Field(100, ge=1, description="with rollback: keep a state to return to every N steps")
    validation_stride: int = Field(0, ge=0, description="stride of the final validation in tokens; 0: half of seq_len")

    device: Execution[Literal["auto", "cpu", "cuda"]] = Field("auto", description="device; auto: CUDA if available")
    compile: Execution[Literal["auto", "on", "blocks", "off"]] = Field(
        "auto", description="torch.compile: on: the whole training graph; blocks: each residual block (half of the compile time); auto: by the run's length"
    )
    parallel: Execution[ParallelConfig] = Field(default_factory=ParallelConfig, description="data-parallel training over several processes")
    micro_batch: Execution[int] = Field(
        0, ge=0, description="sequences per forward pass and process, gradients are accumulated; 0: all, or as many as fit in memory"
    )
    activation_checkpointing: Execution[bool] = Field(False, description="recompute each block in the backward pass: less memory, a third more time")
    prefetch: Execution[int] = Field(2, ge=0, description="batches prepared ahead by a thread; 0: none")
    gc_every: Execution[int] = Field(0, ge=0, description="run Python's garbage collector every N steps only, on all ranks at once; 0: leave it alone")
    threads: Execution[int] = Field(0, ge=0, description="CPU threads; 0: all that this process may use")
    deterministic: Execution[bool | Literal["auto"]] = Field("auto", description=DETERMINISTIC)

    callbacks: Observation[list[Annotated[Part, PartKey("callbacks")]]] = Field(
        default_factory=lambda: [default_part("metrics"), default_part("progress")], description="loggers and probes, in the order of their calls"
    )
    checkpoint_every: Observation[int] = Field(200, ge=0, description="checkpoint every N steps; 0: only at the end")
    keep_checkpoints: Observation[int] = Field(2, ge=1, description="number of newest checkpoints to keep")
    keep_every: Observation[int] = Field(0, ge=0, description="also keep checkpoints of steps divisible by this, to branch from; 0: none")
    keep_steps: Observation[list[Annotated[int, Field(ge=1)]]] = Field([], description="also write and keep checkpoints of these steps")
    keep_best: Observation[int] = Field(0, ge=0, description="also keep the N checkpoints with the lowest validation loss; 0: none")
    async_checkpoints: Observation[bool] = Field(True, description="write checkpoints in a background thread")
    log_every: Observation[int] = Field(10, ge=1, description="log every N steps")
    validation_every: Observation[int] = Field(200, ge=0, description="validation interval in steps; 0: only at the end")
    validation_tokens: Observation[int] = Field(16384, ge=1, description="tokens per validation, always the same text")

    @model_validator(mode="before")
    @classmethod
    def _depth_is_the_architectures(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("depth") is None:
            return data
        chosen = data.get("architecture", {})
        chosen = {"name": chosen} if isinstance(chosen, str) else chosen
        if isinstance(chosen, dict):
            chosen = {"name": "depth_scaled", "depth": data["depth"], **chosen}
        return {"lr_scaling": LR_SCALING, **data, "architecture": chosen}

    @model_validator(mode="after")
    def _depth_sets_the_run(self) -> TrainSection:
        if self.depth is None:
            return self
        sizes = self.architecture.config
        own = dict(sizes).get("depth")
        if own != self.depth:
            raise ValueError(f"depth: {self.depth}, but the architecture's is {own}; give one of them")
        batch_size = self.batch_size if "batch_size" in self.model_fields_set else None
        derived = depth_scaled_run(sizes.num_layers, sizes.d_model, self.seq_len, self.tokens_per_parameter, batch_size)  # type: ignore[attr-defined]
        for key, value in zip(("batch_size", "max_steps"), derived, strict=True):
            if key not in self.model_fields_set:
                object.__setattr__(self, key, value)
        return self

    @field_validator("init_from", "branch_from")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        folder = Path((info.context or {}).get("recipe_folder", "."))
        return str((folder / expand_user(value)).absolute()) if value else ""

    @model_validator(mode="after")
    def _digested(self) -> TrainSection:
        object.__setattr__(self, "init_content", model_digest(Path(self.init_from)) if self.init_from else "")
        object.__setattr__(self, "branch_content", self._branch_digest())
        return self

    def _branch_digest(self) -> str:
        """Of the checkpoint to branch from; as it was when the run began, even if the original run has dropped it since."""
        path = checkpoint_of(Path(self.branch_from), self.branch_step) if self.branch_from else None
        return checkpoint_digest(path) if path else self.branch_content if self.branch_from else ""

    @model_validator(mode="after")
    def _divides(self) -> TrainSection:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.validation_stride > self.seq_len:
            raise ValueError(f"validation_stride: {self.validation_stride} is more than seq_len {self.seq_len}, so tokens would go unscored")
        if self.on_loss_spike != "stop" and not self.spike_factor:
            raise ValueError(f"on_loss_spike: {self.on_loss_spike} needs a spike_factor above 0; with 0 no loss is a spike")
        if self.precision == "fp8" and self.compile == "off":
            raise ValueError("precision: fp8 is slower than bf16 unless it is compiled; set compile: auto or on, or precision: bf16")
        if self.branch_step and not self.branch_from:
            raise ValueError(f"branch_step: {self.branch_step} needs branch_from; set it as well, or remove branch_step")
        if self.init_from and self.branch_from:
            raise ValueError("init_from and branch_from: a run starts from other weights or branches from another run, not both")
        return self

    def num_processes(self) -> int:
        return self.parallel.num_processes(self.device)


def checkpoint_of(folder: Path, step: int) -> Path | None:
    """The checkpoint of `step` (0: the newest) in an artifact's folder, None when there is none."""
    paths = sorted((p for p in (folder / "checkpoints").glob("step-*") if (p / "state.json").is_file()), reverse=True)
    return next((p for p in paths if not step or p.name == f"step-{step:08d}"), None)


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
