"""Stage sft: Fine-tunes a model on solved examples of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import Execution, Observation, StageConfig
from feebcore.parts import Part, PartKey, default_part

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


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
    on_nonfinite: Literal["stop", "skip"] = "stop"  # when loss or gradient is not finite

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


def check(section: SftConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    from feebcore.stages.rl import context_problems

    problems = context_problems(section.task, recipe)
    if section.micro_batch and section.batch_size % section.micro_batch:
        problems.append(f"micro_batch: {section.micro_batch} does not divide batch_size {section.batch_size}")
    return problems


def run(section: SftConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    from feebcore.data.tokenizers import load_tokenizer
    from feebcore.model.io import load_model
    from feebcore.model.precision import autocast, execution, resolve_device
    from feebcore.rl.examples import Examples, train_section
    from feebcore.rl.tasks import evaluate_task, held_out_instances
    from feebcore.train.pretrain import train_model

    source = inputs["model"].file("model")
    device = resolve_device(section.device)
    task = section.task.build()
    tokenizer = load_tokenizer(source / "tokenizer")
    model = load_model(source, device)
    data = Examples(task, tokenizer, section.batch_size, section.seed, model.seq_len)
    settings = train_section(section, source, data.width)
    result = train_model(settings, data, None, source / "tokenizer", out.path, out, vocab_size=model.vocab_size, model=model, final_score=False, name="sft")
    instances = held_out_instances(task, section.eval_prompts)
    found = {}
    with execution(section.threads, section.deterministic), autocast(result.metrics["precision"], device):
        for name, greedy in (("accuracy_sampled", False), ("accuracy_greedy", True)):
            evaluated = evaluate_task(result.model, tokenizer, task, instances, greedy, seed=section.seed)  # type: ignore[arg-type]
            found[name] = {k: v for k, v in evaluated.items() if k != "samples"}
    out.content("model/*")
    kept = {k: result.metrics[k] for k in ("steps", "final_loss", "tokens", "seconds") if k in result.metrics}
    return kept | {"examples": section.max_steps * section.batch_size} | found
