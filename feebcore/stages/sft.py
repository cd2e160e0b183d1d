"""Stage sft: Supervised fine-tuning (SFT) on prompt-answer pairs of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.rl.config import context_problems
from feebcore.rl.sft_config import SftConfig
from feebcore.specs import Need, StageSpec

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


PART = StageSpec(
    "sft",
    SftConfig,
    build=f"{__name__}:run",
    check=f"{__name__}:check",
    needs=(Need("model"),),
    makes=("model",),
    process="worker",
    summary="Supervised fine-tuning (SFT) on prompt-answer pairs of a task.",
)


def check(section: SftConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    problems = context_problems(section, recipe)
    if section.micro_batch and section.batch_size % section.micro_batch:
        problems.append(f"micro_batch: {section.micro_batch} does not divide batch_size {section.batch_size}")
    return problems


def run(section: SftConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    from feebcore.data.tokenizers import load_tokenizer
    from feebcore.model.io import load_model
    from feebcore.model.precision import autocast, execution, resolve_device
    from feebcore.rl.examples import Examples, train_section
    from feebcore.rl.tasks import evaluate_task, held_out_problems, too_few_problems
    from feebcore.train.pretrain import train_model

    source = inputs["model"].file("model")
    device = resolve_device(section.device)
    task = section.task.build()
    tokenizer = load_tokenizer(source / "tokenizer")
    model = load_model(source, device)
    data = Examples(task, tokenizer, section.batch_size, section.seed, model.seq_len)
    settings = train_section(section, source, data.width)
    result = train_model(settings, data, None, source / "tokenizer", out.path, out, vocab_size=model.vocab_size, model=model, final_score=False, name="sft")
    problems = held_out_problems(task, section.eval_prompts)
    if warning := too_few_problems(section.task.name, problems, section.eval_prompts):
        out.log(warning)
    accuracies = {}
    with execution(section.threads, section.deterministic, device), autocast(result.metrics["precision"], device):
        for name, greedy in (("accuracy_sampled", False), ("accuracy_greedy", True)):
            evaluated = evaluate_task(result.model, tokenizer, task, problems, greedy, seed=section.seed)  # type: ignore[arg-type]
            accuracies[name] = {k: v for k, v in evaluated.items() if k != "samples"}
    out.log(f"task {section.task.name}: {_shown(accuracies['accuracy_sampled'])} sampled, {_shown(accuracies['accuracy_greedy'])} greedy")
    out.content("model/*")
    training = {k: result.metrics[k] for k in ("steps", "final_loss", "tokens", "seconds") if k in result.metrics}
    return training | {"examples": section.max_steps * section.batch_size} | accuracies


def _shown(accuracy: Mapping[str, Any]) -> str:
    return f"{accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%}) of {accuracy['n']} held-out problems"
