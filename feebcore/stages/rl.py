"""Stage rl: Trains a model with RL (PPO or GRPO) on a task with a verifiable reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import AlgorithmConfig, LogitsProcessorConfig
from feebcore.rl.config import RlConfig, context_problems
from feebcore.specs import Need, StageSpec

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


PART = StageSpec(
    "rl",
    RlConfig,
    build=f"{__name__}:run",
    check=f"{__name__}:check",
    needs=(Need("model"),),
    makes=("model",),
    process="worker",
    revision=2,
    summary="Trains a model with RL (PPO or GRPO) on a task with a verifiable reward.",
)


def check(section: RlConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    problems = []
    for i, part in enumerate(section.logits_processors):
        assert isinstance(part.config, LogitsProcessorConfig)
        if part.config.truncates:
            problems.append(
                f"logits_processors.{i}: {part.name} removes tokens, and what was removed when sampling cannot be replayed when training; rl takes temperature only"
            )
    algorithm = section.algorithm.config
    assert isinstance(algorithm, AlgorithmConfig)
    if algorithm.compares_group and section.group_size < 2:
        problems.append(f"group_size: {section.algorithm.name} compares completions of one prompt, so it needs at least 2")
    rollouts = section.group_size * section.prompts_per_step
    if algorithm.minibatches > rollouts:
        problems.append(f"algorithm.minibatches: {algorithm.minibatches} are more than the {rollouts} rollouts of a step (group_size x prompts_per_step)")
    return problems + context_problems(section, recipe)


def run(section: RlConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    from feebcore.data.tokenizers import load_tokenizer
    from feebcore.files import read_json
    from feebcore.model.io import load_model, save_model
    from feebcore.model.precision import execution, resolve_device
    from feebcore.parts import resolve_part
    from feebcore.rl.trainer import RlTrainer

    source = inputs["model"].file("model")
    device = resolve_device(section.device)
    with execution(section.threads, section.deterministic, device):
        model = load_model(source, device)
        tokenizer = load_tokenizer(source / "tokenizer")
        trainer = RlTrainer(section, model, tokenizer, section.task.build(), out.path, out, device)
        metrics = trainer.run()
    architecture = resolve_part("architectures", read_json(source / "model.json")["architecture"])
    save_model(out.path / "model", model, architecture, source / "tokenizer")
    out.content("model/*")
    return metrics
