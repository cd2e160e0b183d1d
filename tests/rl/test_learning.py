"""Each algorithm learns two bandits whose best policy is known, from random weights, in seconds."""

from __future__ import annotations

import pytest
import torch
from rl_toys import CharTokenizer, EmitTask, output, rl_config, tiny_model

from feebcore.generate.engine import Completion, encode_prompt
from feebcore.protocols import Problem
from feebcore.rl.trainer import RlTrainer

TOKENIZER = CharTokenizer("=0123456789ab")
ALGORITHMS = [{"name": "grpo"}, {"name": "grpo", "advantage": "none", "aggregation": "constant"}, {"name": "ppo"}]


def train(tmp_path, algorithm, task, score, steps=25, **options):
    section = rl_config(algorithm=algorithm, max_steps=steps, prompts_per_step=4, group_size=16, log_every=steps, eval_prompts=4, **options)
    trainer = RlTrainer(section, tiny_model(TOKENIZER.vocab_size, d_model=16, num_layers=1), TOKENIZER, task, tmp_path, output(tmp_path), score=score)
    trainer.run()
    return trainer


def next_token_probability(trainer, token, prompt="123="):
    with torch.no_grad():
        hidden = trainer.policy(torch.tensor([encode_prompt(TOKENIZER, prompt)])).hidden
        return trainer.policy.lm_head(hidden).softmax(-1)[0, -1, token].item()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["grpo", "dr_grpo", "ppo"])
def test_learns_to_emit_the_rewarded_token(tmp_path, algorithm):
    token = TOKENIZER.encode("a")[0]

    def score(problem: Problem, completion: Completion) -> float:
        return float(completion.tokens[0] == token)

    trainer = train(tmp_path, algorithm, EmitTask(1), score, lr=1e-2)
    assert next_token_probability(trainer, token) > 0.95


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["grpo", "dr_grpo", "ppo"])
def test_learns_to_stop_when_only_stopping_pays(tmp_path, algorithm):
    """Trap 1: the end token is a sampled token like any other."""

    def score(problem: Problem, completion: Completion) -> float:
        return -float(len(completion.tokens))

    trainer = train(tmp_path, algorithm, EmitTask(6), score, steps=30, lr=1e-2)
    assert next_token_probability(trainer, TOKENIZER.eos_id) > 0.95
    assert trainer.last["length"] < 1.2


def test_shuffled_rewards_teach_nothing(tmp_path):
    """The control: rewards that do not depend on the completion leave the rewarded token where it was."""
    token = TOKENIZER.encode("a")[0]
    generator = torch.Generator().manual_seed(0)
    trainer = train(tmp_path, "grpo", EmitTask(1), lambda i, c: float(torch.rand((), generator=generator) < 0.1), lr=3e-3)
    assert next_token_probability(trainer, token) < 0.5


@pytest.mark.parametrize("value_optimizer", ["separate", "shared"])
def test_the_value_head_learns_the_expected_reward(tmp_path, value_optimizer):
    trainer = train(
        tmp_path,
        {"name": "ppo", "value_clip": None},
        EmitTask(1),
        lambda i, c: 0.75,
        steps=30,
        lr=1e-2,
        value_optimizer=value_optimizer,
        value_learning_rate=3e-2,
    )
    rollouts, _, _ = trainer.collect()
    from feebcore.rl.rollouts import collate

    experience = collate(rollouts, 1)
    trainer._run_frozen_models(experience, False)
    assert (experience.values[:, 0] - 0.75).abs().max() < 0.15
