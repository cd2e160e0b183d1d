"""The known traps of PPO and GRPO (../shared/reference/rl_eval.md, section 2), by number. Others are tested where they
live: 3 tests/generate/test_engine.py; 12, 13, 14, 17, 18, 28 test_advantages.py; 11, 15, 16, 31 test_losses.py; 27 test_resume.py;
32, 33 test_tasks.py. 29 and 30 concern GSPO and CISPO, which are not built here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rl_toys import CharTokenizer, EmitTask, output, rl_config, tiny_model

from feebcore.errors import FeebError
from feebcore.generate.engine import Completion, encode_prompt, generate
from feebcore.parts import resolve_part
from feebcore.protocols import ModelOutput
from feebcore.rl import losses
from feebcore.rl.config import RlConfig
from feebcore.rl.rollouts import Experience, Prediction, collate, make_rollout, predict
from feebcore.rl.trainer import RlTrainer
from feebcore.stages.rl import check

TOKENIZER = CharTokenizer()
PROMPTS = ["12=", "3=", "4567=", "12="]


def sharp_model(**options):
    model = tiny_model(TOKENIZER.vocab_size, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.5)
    return model


def make_rollouts(model, logits_processors=(), max_completion_tokens=6, seed=0):
    prompts = [encode_prompt(TOKENIZER, p) for p in PROMPTS]
    completions = generate(model, prompts, max_completion_tokens, TOKENIZER.eos_id, logits_processors, seed=seed)
    rewards = [0.0, 1.0, 0.5, 1.0]
    return [make_rollout(p, c, r, g, 0) for p, c, r, g in zip(prompts, completions, rewards, [0, 1, 1, 0], strict=True)]


def build(algorithm="grpo", **options):
    return resolve_part("algorithms", {"name": algorithm, **options}).build()


def filled(experience: Experience, values: bool = False) -> Experience:
    generator = torch.Generator().manual_seed(1)
    experience.reference_log_probs = experience.log_probs - 0.1 * torch.rand(experience.log_probs.shape, generator=generator)
    if values:
        experience.values = torch.randn(len(experience), experience.log_probs.shape[1] + 1, generator=generator)
    return experience


def make_trainer(folder, **options):
    section = rl_config(**{"max_steps": 4, "prompts_per_step": 3, "group_size": 4, "eval_prompts": 4} | options)
    score = lambda problem, completion: sum(t % 2 for t in completion.tokens) / len(completion.tokens)  # noqa: E731
    return RlTrainer(section, tiny_model(TOKENIZER.vocab_size), TOKENIZER, EmitTask(12), folder, output(folder), score=score)


def test_01_the_sampled_end_token_is_a_trained_token():
    experience = collate(make_rollouts(sharp_model(), max_completion_tokens=24), 24)
    assert not experience.truncated.all()
    for row, start, length, cut in zip(experience.tokens, experience.starts, experience.lengths, experience.truncated, strict=True):
        assert (row[start + length - 1] == TOKENIZER.eos_id) == (not cut)
    assert experience.mask.sum() == experience.lengths.sum()


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_01_the_end_token_has_a_share_in_the_loss(name, aggregation):
    """Of every rollout that drew it, the gradient reaches the end token's log-probability and the last value, and nothing behind."""
    algorithm = build(name, aggregation=aggregation)
    experience = filled(collate(make_rollouts(sharp_model(), max_completion_tokens=24), 24), values=True)
    algorithm.prepare(experience, algorithm.initial_controller_state())
    ended = ~experience.truncated
    assert ended.any()
    assert (experience.lengths < experience.mask.shape[1]).any()
    log_probs, values = experience.log_probs.clone().requires_grad_(), (experience.values + 0.01).requires_grad_()
    totals = losses.totals_of(experience.lengths, 24)
    terms = algorithm.loss(Prediction(log_probs, torch.ones(experience.mask.shape), values), experience, totals, algorithm.initial_controller_state())
    terms.loss.backward()
    assert torch.equal((log_probs.grad != 0)[ended], experience.mask[ended])
    if name == "ppo":
        assert torch.equal((values.grad[:, :-1] != 0)[ended], experience.mask[ended])


def test_02_masks_come_from_lengths_so_any_id_may_pad():
    """The loss is the same whether padding holds the end token, 0, or anything else."""
    model, algorithm = sharp_model(), build()
    experience = filled(collate(make_rollouts(model, max_completion_tokens=24), 24))
    algorithm.prepare(experience, algorithm.initial_controller_state())
    totals = losses.totals_of(experience.lengths, 24)
    found = []
    for pad in (0, TOKENIZER.eos_id, 7):
        padded = dataclasses.replace(experience, tokens=experience.tokens.clone())
        places = torch.arange(padded.tokens.shape[1])[None] >= (padded.starts + padded.lengths)[:, None]
        assert places.any()
        padded.tokens[places] = pad
        found.append(algorithm.loss(predict(model, padded), padded, totals, algorithm.initial_controller_state()).loss.item())
    assert found[0] == found[1] == found[2]


def test_04_prompts_are_padded_left_for_sampling_and_rows_right_for_training():
    rollouts = make_rollouts(sharp_model())
    experience = collate(rollouts, 6)
    for i, (rollout, prompt) in enumerate(zip(rollouts, PROMPTS, strict=True)):
        assert rollout.tokens[: rollout.prompt_length] == tuple(encode_prompt(TOKENIZER, prompt))
        assert tuple(experience.tokens[i, : len(rollout.tokens)].tolist()) == rollout.tokens
        assert not experience.tokens[i, len(rollout.tokens) :].any()


def test_05_log_probs_are_of_the_next_token_by_a_known_bigram_table():
    class Bigram(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(TOKENIZER.vocab_size, TOKENIZER.vocab_size, generator=torch.Generator().manual_seed(0)))
            self.lm_head = torch.nn.Identity()

        def forward(self, tokens):
            return ModelOutput(self.table[tokens])

    rollouts = make_rollouts(sharp_model())
    model = Bigram()
    prediction = predict(model, collate(rollouts, 6))
    table = model.table.log_softmax(-1)
    for i, rollout in enumerate(rollouts):
        for t, token in enumerate(rollout.completion):
            before = rollout.tokens[rollout.prompt_length + t - 1]
            assert prediction.log_probs[i, t].item() == pytest.approx(table[before, token].item(), abs=1e-6)
            assert prediction.entropy[i, t].item() == pytest.approx(-(table[before].exp() * table[before]).sum().item(), abs=1e-5)
        assert not prediction.log_probs[i, rollout.length :].any()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_06_the_first_ratio_is_one_at_any_temperature(temperature):
    model = sharp_model()
    logits_processors = [resolve_part("logits_processors", {"name": "temperature", "temperature": temperature}).build()]
    experience = collate(make_rollouts(model, logits_processors), 6)
    ratio = (predict(model, experience, logits_processors).log_probs - experience.log_probs).exp()[experience.mask]
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-5)
    if temperature != 1.0:
        assert ((predict(model, experience).log_probs - experience.log_probs).abs()[experience.mask] > 1e-2).any()


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
def test_07_truncated_sampling_is_refused_with_what_to_do(name):
    class NoRecipe:
        def provider(self, section, kind):
            return None

    section = RlConfig(logits_processors=["temperature", name])
    assert [p.split(":")[0] for p in check(section, NoRecipe())] == ["logits_processors.1"]
    assert "temperature only" in check(section, NoRecipe())[0]
    assert not check(RlConfig(logits_processors=["temperature"]), NoRecipe())


@pytest.mark.parametrize("position", ["learned", "rope", "none"])
def test_08_sampled_and_trained_log_probs_agree_and_dropout_is_off(position, tmp_path):
    model = sharp_model(position=position, dropout=0.3)
    experience = collate(make_rollouts(model), 6)
    assert torch.allclose(predict(model, experience).log_probs, experience.log_probs, atol=1e-5)
    trainer = make_trainer(tmp_path)
    assert trainer.advance()["mismatch_kl"] < 1e-10
    assert not trainer.policy.training


def test_08_an_optimizer_that_samples_from_other_weights_is_refused(tmp_path):
    with pytest.raises(FeebError, match="schedule_free scores other weights than it trains"):
        make_trainer(tmp_path, optimizer=resolve_part("optimizers", "schedule_free"))


def test_08_a_mismatch_is_measured(tmp_path):
    trainer = make_trainer(tmp_path)
    rollouts, _, _ = trainer.collect()
    shifted = [dataclasses.replace(r, log_probs=tuple(p - 0.1 for p in r.log_probs)) for r in rollouts]
    assert trainer.learn(shifted)["mismatch_kl"] == pytest.approx(np.exp(0.1) - 1 - 0.1, rel=1e-3)


def test_08_bf16_keeps_sampler_and_trainer_close(tmp_path):
    assert make_trainer(tmp_path, precision="bf16").advance()["mismatch_kl"] < 1e-3


def test_09_nothing_is_re_tokenized(tmp_path):
    """A tokenizer whose decoding does not round-trip: rollouts keep the sampled ids."""

    class Lossy(CharTokenizer):
        def decode(self, ids):
            return "?" * len(ids)

    trainer = make_trainer(tmp_path)
    trainer.tokenizer = Lossy()
    rollouts, _, completions = trainer.collect()
    assert [list(r.completion) for r in rollouts] == [c.tokens for c in completions]


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_10_gradients_do_not_depend_on_micro_batches(algorithm, aggregation, tmp_path):
    gradients = []
    for micro_batch in (0, 1, 2, 5):
        options = {"name": algorithm, "aggregation": aggregation, "kl_coefficient": 0.1, "entropy_coefficient": 0.1, "minibatches": 1, "epochs": 1}
        trainer = make_trainer(tmp_path / f"{micro_batch}", algorithm=options, micro_batch=micro_batch, grad_clip=0.0)
        if trainer.actor.value_head is not None:
            torch.nn.init.constant_(trainer.actor.value_head.weight, 0.05)
        trainer.policy.requires_grad_(True)
        rollouts, _, _ = trainer.collect()
        assert len({r.length for r in rollouts}) > 1
        trainer.optimizer.step = lambda: None  # keep the gradients, move nothing
        trainer.learn(rollouts)
        gradients.append({n: p.grad.clone() for n, p in trainer.actor.named_parameters()})
    largest = max(g.abs().max() for g in gradients[0].values())
    assert largest > 1e-4
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert torch.allclose(other[name], gradient, atol=1e-6 * max(1.0, largest.item())), name


def test_19_truncation_bootstraps_the_critic_or_is_the_end():
    """Reward 1 a step for ever, discount 0.9: bootstrapping with V = 10 finds no surprise, a terminal end does."""
    from feebcore.rl.advantages import gae

    rewards, values, lengths = torch.ones(2, 5), torch.full((2, 6), 10.0), torch.tensor([5, 5])
    found, returns = gae(rewards, values, lengths, 0.9, 0.95, bootstrap=torch.tensor([True, False]))
    assert found[0].abs().max() < 1e-5
    assert torch.allclose(returns[0], torch.full((5,), 10.0), atol=1e-5)
    assert found[1, -1] == -9


def test_19_an_end_token_in_the_last_place_is_no_truncation():
    prompt = [0, 5]
    ended = make_rollout(prompt, Completion([3, TOKENIZER.eos_id], [-1.0, -1.0], [-1.0, -1.0], "stop"), 1.0, 0, 0)
    cut = make_rollout(prompt, Completion([3, 4], [-1.0, -1.0], [-1.0, -1.0], "length"), 1.0, 0, 0)
    experience = collate([ended, cut], 2)
    experience.values = torch.full((2, 3), 5.0)
    algorithm = build("ppo", truncation="bootstrap", whiten=False, lam=0.0)
    algorithm.prepare(experience, algorithm.initial_controller_state())
    assert experience.advantages[:, -1].tolist() == [1.0 - 5.0, 1.0 + 5.0 - 5.0]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_21_nan_and_infinity_on_padding_change_neither_loss_nor_gradient(algorithm):
    """Padding is removed, not multiplied by zero: 0 x NaN is NaN. Each input is poisoned alone, so that no other guard hides it."""
    part = build(algorithm, kl_coefficient=0.1, entropy_coefficient=0.1, dual_clip=3.0)
    controller_state = part.initial_controller_state()
    experience = filled(collate(make_rollouts(sharp_model(), max_completion_tokens=24), 24), values=True)
    part.prepare(experience, controller_state)
    mask = experience.mask
    assert not mask.all()
    totals = losses.totals_of(experience.lengths, 24)
    inputs = {n: getattr(experience, n) for n in ("log_probs", "reference_log_probs", "advantages", "returns", "values") if getattr(experience, n) is not None}
    predicted = {"new_log_probs": experience.log_probs - 0.05, "entropy": torch.ones(mask.shape), "new_values": torch.zeros(mask.shape[0], mask.shape[1] + 1)}

    def outcome(name, poison):
        given = {k: v.detach().clone() for k, v in (inputs | predicted).items()}
        if name:
            given[name][:, : mask.shape[1]][~mask] = poison
        leaves = [given[k].requires_grad_() for k in predicted]
        terms = part.loss(Prediction(*leaves), dataclasses.replace(experience, **{k: given[k] for k in inputs}), totals, controller_state)
        terms.loss.backward()
        return [terms.loss.detach(), *terms.sums.values(), *(torch.zeros(()) if leaf.grad is None else leaf.grad for leaf in leaves)]

    clean = outcome("", 0.0)
    assert all(value.isfinite().all() for value in clean)
    for name in inputs | predicted:
        for poison in (float("nan"), float("inf"), -float("inf"), 1e10):
            assert all(torch.equal(a, b) for a, b in zip(outcome(name, poison), clean, strict=True)), (name, poison)


@pytest.mark.parametrize("mode", losses.AGGREGATIONS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_21_each_term_by_itself_removes_its_padding(mode, poison):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    dirty = lambda: torch.where(mask, 0.3, poison)  # noqa: E731
    new, old, reference, advantages = dirty().requires_grad_(), dirty(), dirty(), dirty()
    value = dirty().requires_grad_()
    terms = losses.policy_loss(new, old, advantages, mask, dual_clip=3.0)
    kls = [losses.kl_estimate(new, reference, mask, estimator) for estimator in losses.ESTIMATORS]
    critic = losses.value_loss(value, dirty(), dirty(), mask)
    for term in (terms.per_token, terms.ratio, critic, *kls):
        assert term.isfinite().all()
    raw = dirty().requires_grad_()
    total = losses.aggregate(terms.per_token + critic + sum(kls), mask, mode, losses.totals_of(mask.sum(1), 3)) + losses.aggregate(
        raw, mask, mode, losses.totals_of(mask.sum(1), 3)
    )
    total.backward()
    assert total.isfinite()
    for leaf in (new, value, raw):
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[~mask].any()


def test_22_the_reference_never_moves_and_the_first_look_is_on_policy(tmp_path):
    trainer = make_trainer(tmp_path, algorithm={"name": "grpo", "kl_coefficient": 0.1, "epochs": 2, "minibatches": 2})
    before = {k: v.clone() for k, v in trainer.reference.state_dict().items()}
    rows = [trainer.advance() for _ in range(3)]
    assert all(torch.equal(v, before[k]) for k, v in trainer.reference.state_dict().items())
    assert not torch.equal(trainer.policy.lm_head.weight, before["lm_head.weight"])
    assert all(row["mismatch_kl"] < 1e-10 for row in rows)  # old log-probs are the sampler's, of this step's weights
    assert rows[0]["kl"] < 1e-8 < rows[2]["kl"]
    assert not trainer.reference.training


def test_22_nothing_is_clipped_on_the_first_update(tmp_path):
    trainer = make_trainer(tmp_path, algorithm={"name": "grpo", "epochs": 1, "minibatches": 1})
    assert [trainer.advance()["clip_fraction"] for _ in range(2)] == [0.0, 0.0]


def test_23_extreme_log_ratios_stay_finite():
    mask = torch.ones(1, 3, dtype=torch.bool)
    new = torch.tensor([[-500.0, 0.0, 300.0]], requires_grad=True)
    terms = losses.policy_loss(new, torch.zeros(1, 3) - 100.0, torch.tensor([[-1.0, -1.0, 1.0]]), mask)
    kl = losses.kl_estimate(new, torch.zeros(1, 3), mask, "k3")
    (terms.per_token.sum() + kl.sum()).backward()
    assert terms.per_token.isfinite().all()
    assert kl.isfinite().all()
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_24_metrics_do_not_depend_on_micro_batches(algorithm, tmp_path):
    rows = [make_trainer(tmp_path / f"{m}", algorithm=algorithm, micro_batch=m).advance() for m in (0, 1, 5)]
    for name in ("reward", "kl", "entropy", "length", "clip_fraction", "pg_loss", "grad_norm", "zero_variance"):
        assert [r[name] for r in rows] == pytest.approx([rows[0][name]] * 3, abs=1e-5), name


def test_25_the_value_head_starts_at_zero(tmp_path):
    trainer = make_trainer(tmp_path, algorithm="ppo")
    assert not any(p.any() for p in trainer.actor.value_head.parameters())


def test_26_on_policy_the_loss_is_zero_and_the_gradient_is_not(tmp_path):
    row = make_trainer(tmp_path, algorithm={"name": "grpo", "aggregation": "sequence_mean"}).advance()
    assert row["grad_norm"] > 1e-3
    assert "pg_loss" in row


def test_34_groups_are_named_not_positional():
    rollouts = make_rollouts(sharp_model())
    algorithm = build()
    straight, mixed = collate(rollouts, 6), collate([rollouts[i] for i in (2, 0, 3, 1)], 6)
    for experience in (straight, mixed):
        algorithm.prepare(experience, algorithm.initial_controller_state())
    assert torch.equal(straight.advantages[[2, 0, 3, 1], :1], mixed.advantages[:, :1])


def test_a_reward_of_none_teaches_nothing():
    rollouts = make_rollouts(sharp_model())
    rollouts[1] = dataclasses.replace(rollouts[1], reward=None)
    for name in ("grpo", "ppo"):
        algorithm = build(name)
        experience = filled(collate(rollouts, 6), values=True)
        algorithm.prepare(experience, algorithm.initial_controller_state())
        assert not experience.advantages[1].any()
        assert experience.advantages.isfinite().all()
    assert experience.returns[1].tolist() == experience.values[1, :-1].tolist()  # nor the critic


def test_k1_in_the_loss_and_an_adaptive_kl_of_zero_are_refused():
    with pytest.raises(ValidationError, match="gradient of zero"):
        resolve_part("algorithms", {"name": "grpo", "kl_estimator": "k1", "kl_coefficient": 0.1})
    with pytest.raises(ValidationError, match="start above 0"):
        resolve_part("algorithms", {"name": "ppo", "kl_target": 1.0})


def test_adaptive_kl_moves_towards_its_target():
    algorithm = build("ppo", kl_coefficient=0.1, kl_target=2.0)
    controller_state = algorithm.initial_controller_state()
    algorithm.adapt(controller_state, {"kl": 4.0})
    assert controller_state["kl_coefficient"] == pytest.approx(0.1 * 1.02)
    algorithm.adapt(controller_state, {"kl": 1.9})
    assert controller_state["kl_coefficient"] == pytest.approx(0.1 * 1.02 * (1 - 0.005))
