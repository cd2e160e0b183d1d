"""Stage rl: Improves a model on a verifiable task by PPO or GRPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import Execution, Observation, StageConfig
from feebcore.parts import Part, PartKey, default_part

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


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
    validation_every: Observation[Annotated[int, Field(ge=0)]] = 0  # steps between held-out accuracies; 0: before and after only


def check(section: RlConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    problems = []
    for i, part in enumerate(section.logits_processors):
        if getattr(part.config, "truncates", True):
            problems.append(
                f"processors.{i}: {part.name} removes tokens, and what was removed when sampling cannot be replayed when training; rl takes temperature only"
            )
    if getattr(section.algorithm.config, "compares_group", False) and section.group_size < 2:
        problems.append(f"group_size: {section.algorithm.name} compares completions of one prompt, so it needs at least 2")
    rollouts = section.group_size * section.prompts_per_step
    minibatches = getattr(section.algorithm.config, "minibatches", 1)
    if minibatches > rollouts:
        problems.append(f"algorithm.minibatches: {minibatches} are more than the {rollouts} rollouts of a step (group_size x prompts_per_step)")
    return problems + context_problems(section.task, recipe)


def context_problems(task: Part, recipe: Recipe) -> list[str]:
    """A task whose completions cannot fit the context that the recipe pretrains."""
    pretrain = recipe.stages.get("pretrain")
    seq_len = getattr(pretrain.section, "seq_len", None) if pretrain else None
    needed = task.build().max_completion_tokens + 1
    if seq_len is not None and needed >= seq_len:
        return [f"task: {task.name} needs completions of up to {needed - 1} tokens, but pretrain.seq_len is {seq_len}; raise it or make the task smaller"]
    return []


def run(section: RlConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    from feebcore.data.tokenizers import load_tokenizer
    from feebcore.files import read_json
    from feebcore.model.io import load_model, save_model
    from feebcore.model.precision import execution, resolve_device
    from feebcore.parts import resolve_part
    from feebcore.rl.trainer import RlTrainer

    source = inputs["model"].file("model")
    device = resolve_device(section.device)
    with execution(section.threads, section.deterministic):
        model = load_model(source, device)
        tokenizer = load_tokenizer(source / "tokenizer")
        trainer = RlTrainer(section, model, tokenizer, section.task.build(), out.path, out, device)
        metrics = trainer.run()
    architecture = resolve_part("architectures", read_json(source / "model.json")["architecture"])
    save_model(out.path / "model", model, architecture, source / "tokenizer")
    out.content("model/*")
    return metrics
