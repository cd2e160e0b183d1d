"""Options of stage rl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from feebcore.config import Execution, Observation, StageConfig
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

    task: Annotated[Part, PartKey("tasks")] = default_part("sort")
    algorithm: Annotated[Part, PartKey("algorithms")] = default_part("grpo")
    optimizer: Annotated[Part, PartKey("optimizers")] = default_part("adamw", lr=1e-4)
    schedule: Annotated[Part, PartKey("schedules")] = default_part("constant")
    logits_processors: list[Annotated[Part, PartKey("logits_processors")]] = Field(default_factory=list)  # none: sampled at temperature 1
    value_optimizer: Literal["sequential", "shared"] = "sequential"  # the value head: an AdamW of its own, or the policy's optimizer
    value_learning_rate: float = Field(1e-3, gt=0)  # of the separate one
    group_size: int = Field(8, ge=1)
    prompts_per_step: int = Field(16, ge=1)
    max_steps: int = Field(60, ge=1)
    grad_clip: float = Field(1.0, ge=0.0)  # largest global gradient norm; 0 never clips
    eval_prompts: int = Field(512, ge=1)  # held-out problems of the accuracies before and after
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"

    device: Execution[Literal["auto", "cpu", "cuda"]] = "auto"
    threads: Execution[Annotated[int, Field(ge=0)]] = 0  # 0: every CPU this process may use
    deterministic: Execution[bool] = True
    micro_batch: Execution[Annotated[int, Field(ge=0)]] = 0  # rollouts held at once; 0: all of a minibatch

    checkpoint_every: Observation[Annotated[int, Field(ge=0)]] = 20  # steps; 0: only at the end
    keep_checkpoints: Observation[Annotated[int, Field(ge=1)]] = 2
    log_every: Observation[Annotated[int, Field(ge=1)]] = 1
    log_rollouts: Observation[Annotated[int, Field(ge=0)]] = 4  # samples kept of each logged step
    eval_every: Observation[Annotated[int, Field(ge=0)]] = 0  # steps between held-out accuracies; 0: before and after only


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
