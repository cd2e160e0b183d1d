"""Options of stage rl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from feebcore.config import DETERMINISTIC, Execution, Observation, StageConfig
from feebcore.parts import Part, PartKey, default_part
from feebcore.rl.sft_config import SftConfig
from feebcore.train.config import TrainSection

if TYPE_CHECKING:
    from feebcore.recipe import Recipe, StageEntry


class RlConfig(StageConfig):
    """Options of stage rl.

    A step samples `group_size` completions for each of `prompts_per_step` training prompts, scores them, and lets the
    algorithm make its optimizer steps. Clipping, KL, entropy and epochs are the algorithm's own options.
    """

    task: Annotated[Part, PartKey("tasks")] = Field(
        default_part("sort"), description="task: prompts and a verifiable reward; left out: the task that another stage of the recipe names"
    )
    algorithm: Annotated[Part, PartKey("algorithms")] = Field(default_part("grpo"), description="RL algorithm: advantages and losses")
    optimizer: Annotated[Part, PartKey("optimizers")] = Field(default_part("adamw", lr=1e-4), description="optimizer of the policy")
    schedule: Annotated[Part, PartKey("schedules")] = Field(default_part("constant"), description="learning-rate schedule")
    logits_processors: list[Annotated[Part, PartKey("logits_processors")]] = Field(
        default_factory=list, description="logits processors applied before sampling; default: none (temperature 1)"
    )
    value_optimizer: Literal["separate", "shared"] = Field("separate", description="optimizer of the value head: a separate AdamW, or the policy's optimizer")
    value_learning_rate: float = Field(1e-3, gt=0, description="learning rate of the separate optimizer of the value head")
    group_size: int = Field(8, ge=1, description="completions per prompt")
    prompts_per_step: int = Field(16, ge=1, description="prompts per step")
    max_steps: int = Field(60, ge=1, description="RL steps: sample rollouts, then run the optimizer steps of the algorithm")
    grad_clip: float = Field(1.0, ge=0.0, description="maximum global gradient norm; 0: no clipping")
    eval_prompts: int = Field(512, ge=1, description="held-out prompts for the accuracy before and after training")
    seed: int = Field(0, ge=0, description="random seed of prompts and sampling")
    precision: Literal["auto", "fp32", "bf16"] = Field("fp32", description="matmul precision; weights stay fp32; auto: bf16 if the hardware supports it")

    device: Execution[Literal["auto", "cpu", "cuda"]] = Field("auto", description="auto: CUDA if available")
    threads: Execution[Annotated[int, Field(ge=0)]] = Field(0, description="CPU threads; 0: every CPU this process may use")
    deterministic: Execution[bool | Literal["auto"]] = Field("auto", description=DETERMINISTIC)
    micro_batch: Execution[Annotated[int, Field(ge=0)]] = Field(0, description="rollouts per forward pass; 0: a whole minibatch")

    checkpoint_every: Observation[Annotated[int, Field(ge=0)]] = Field(20, description="steps between checkpoints; 0: only at the end")
    keep_checkpoints: Observation[Annotated[int, Field(ge=1)]] = Field(2, description="number of latest checkpoints to keep")
    log_every: Observation[Annotated[int, Field(ge=1)]] = Field(1, description="steps between rows of metrics.jsonl")
    log_rollouts: Observation[Annotated[int, Field(ge=0)]] = Field(4, description="rollouts written per logged step")
    validation_every: Observation[Annotated[int, Field(ge=0)]] = Field(
        0, description="evaluate held-out accuracy every N steps; 0: only before and after training"
    )


def context_problems(section: RlConfig | SftConfig, recipe: Recipe) -> list[str]:
    """A task whose completions cannot fit the context of the model that the recipe trains; of a named input, the run says so."""
    maker: StageEntry | None = recipe.provider(section, "model")
    while maker is not None and not isinstance(maker.section, TrainSection):
        maker = recipe.provider(maker.section, "model")
    needed = section.task.build().max_completion_tokens
    if maker is None or needed + 1 < maker.section.seq_len:  # type: ignore[attr-defined]
        return []
    length = maker.section.seq_len  # type: ignore[attr-defined]
    name = section.task.name
    return [f"task: {name} needs completions of up to {needed} tokens, but {maker.key}.seq_len is {length}; raise it or make the task smaller"]
