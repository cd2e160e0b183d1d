"""What single objectives promise beyond their contract: their equations, written plainly, on small transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from feebcore.config import identity_of
from feebcore.model.build import build_model
from feebcore.model.counting import count_flops, training_flops
from feebcore.model.io import save_model
from feebcore.model.masks import Masks
from feebcore.model.parts import LMHeadPart
from feebcore.parts import resolve_part
from feebcore.protocols import Batch, LanguageModel, ModelOutput
from feebcore.testing import candidate
from feebcore.testing.framework import iterate
from feebcore.testing.objectives import Table, evaluate, model_folder
from feebcore.train.step import LossModule

V, B, T, L = 11, 2, 7, 3


def objective(name: str, **options: Any) -> Any:
    return resolve_part("objectives", {"name": name, **options}).build()


def transformer(**options: Any) -> Any:
    shape = {"name": "transformer", "d_model": 16, "num_heads": 2, "num_layers": L}
    model = build_model(resolve_part("architectures", shape | options), V, T, seed=1)
    with torch.no_grad():  # attention and predictions far from uniform
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return model


def batch(packed: bool = True) -> Batch:
    random = torch.Generator().manual_seed(0)
    stream = torch.randint(V, (B, T + 1), generator=random)
    plain = Batch(stream[:, :-1].contiguous(), stream[:, 1:].contiguous())
    if not packed:
        return plain
    doc_ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [-1, -1, 0, 0, 0, 1, 1]])
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [1, 0, 1, 1, 0, 1, 1]], dtype=torch.bool)
    return dataclasses.replace(plain, doc_ids=doc_ids, mask=mask)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


# --- options ----------------------------------------------------------------------------------------------------------

OPTIONS = [
    {"name": "multi_token", "k": 4, "weights": [1.0, 0.5, 0.25, 0.1], "z_loss": 0.01},
    {"name": "all_layer", "reduce": "mean", "label_smoothing": 0.1},
    {"name": "local_gradients", "reduce": "mean", "stop_change": 0.5},
    {"name": "selective", "keep_ratio": 0.3, "reference": "a model"},
    {"name": "distillation", "teacher": "a model", "temperature": 1.0, "weight": 0.9},
    *({"name": "confidence", "form": form, "next_token": 1.0} for form in ("exit_weighted", "exit_or_penalty", "exit_or_penalty_prev")),
    {"name": "confidence", "form": "exit_or_penalty", "reward": True, "penalize_last": True},
    {"name": "confidence", "form": "exit_or_penalty_prev", "targets": "before", "reward": True, "next_token": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_other_options_keep_the_contract_too(options: dict[str, Any]) -> None:
    options = {k: str(model_folder()) if v == "a model" else v for k, v in options.items()}
    broken = [str(r) for r in iterate(candidate("objectives", resolve_part("objectives", options))) if not r.passed]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("options", "breaks"),
    [
        ({"form": "log_one_minus_p"}, {"adds_up_over_rows", "documents_are_independent"}),
        ({"form": "exit_or_penalty"}, {"learns_next_token"}),
        ({"form": "exit_or_penalty_prev"}, {"learns_next_token"}),
    ],
    ids=["log_one_minus_p", "exit_or_penalty", "exit_or_penalty_prev"],
)
def test_a_form_of_confidence_breaks_only_what_its_definition_breaks(options: dict[str, Any], breaks: set[str]) -> None:
    results = iterate(candidate("objectives", resolve_part("objectives", {"name": "confidence", **options})))
    assert {r.check for r in results if not r.passed} == breaks


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("multi_token", {"k": 3, "weights": [1.0, 0.5]}, r"2 of them for k: 3 tokens; give one for each"),
        ("confidence", {"form": "exit_weighted", "reward": True}, r"choose form exit_or_penalty or exit_or_penalty_prev, or leave reward out"),
        ("confidence", {"form": "neg_ce", "penalize_last": True}, r"choose form exit_or_penalty or exit_or_penalty_prev, or leave penalize_last out"),
        ("distillation", {}, r"teacher"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        resolve_part("objectives", {"name": name, **options})


# --- multi_token ------------------------------------------------------------------------------------------------------


class Foresight(nn.Linear, LMHeadPart):
    """A head with a matrix for each of two MTP outputs."""

    num_mtp = 2

    def __init__(self) -> None:
        super().__init__(16, V, bias=False)
        self.further = nn.ModuleList(nn.Linear(16, V, bias=False) for _ in range(2))

    def mtp_outputs(self, model: LanguageModel, batch: Batch, output: ModelOutput) -> list[tuple[Tensor, nn.Module]]:
        return [(output.hidden, head) for head in self.further]


def with_foresight() -> Any:
    model = transformer()
    torch.manual_seed(3)
    model.lm_head = Foresight()
    return model


@pytest.mark.parametrize("packed", [False, True])
def test_multi_token_is_the_sum_over_pairs_of_input_and_target_in_one_document(packed: bool) -> None:
    model, some = with_foresight(), batch(packed)
    hidden = model(some.tokens, doc_ids=some.doc_ids).hidden
    heads, weights = [model.lm_head, *model.lm_head.further], (1.0, 0.5, 0.25)
    wanted, counts = 0.0, [0, 0, 0]
    for b in range(B):
        for t in range(T):
            for j in range(1, 4):
                target_place = t + j  # of the stream; beyond the window's end when it is more than T
                if target_place > T:
                    continue
                if packed:
                    document = int(some.doc_ids[b, t])
                    same = target_place == T or int(some.doc_ids[b, target_place]) == document
                    last = int(some.doc_ids[b, target_place - 1]) == document
                    if document < 0 or not some.mask[b, target_place - 1] or not last or (j > 1 and not same):
                        continue
                log_p = heads[j - 1](hidden[b, t]).log_softmax(-1).detach()
                wanted -= weights[j - 1] * float(log_p[some.targets[b, target_place - 1]])
                counts[j - 1] += 1
    out = objective("multi_token", k=3, weights=weights)(model, some)
    assert out.loss_sum.item() == pytest.approx(wanted, rel=1e-5)
    assert [float(out.count), float(out.metrics["share_2"]), float(out.metrics["share_3"])] == counts


def test_multi_token_says_what_head_it_needs() -> None:
    with pytest.raises(ValueError, match="predicts the next token only; choose one for multi-token prediction, or set k: 1"):
        objective("multi_token")(transformer(), batch())
    with pytest.raises(ValueError, match="k: 4 needs 3 tokens after the next one, but the head predicts 2"):
        objective("multi_token", k=4)(with_foresight(), batch())
    assert torch.equal(objective("multi_token", k=1)(transformer(), batch()).loss_sum, objective("next_token")(transformer(), batch()).loss_sum)


# --- layers -----------------------------------------------------------------------------------------------------------


def losses_by_layer(model: Any, some: Batch) -> list[Tensor]:
    """Sums of nats after each layer, written plainly."""
    layers = model(some.tokens, doc_ids=some.doc_ids, want_layers=True).layers
    keep = torch.ones_like(some.targets, dtype=torch.bool) if some.mask is None else some.mask & (some.doc_ids >= 0)
    return [F.cross_entropy(model.lm_head(model.final_norm(x))[keep], some.targets[keep], reduction="sum") for x in layers]


def test_all_layer_is_the_sum_or_mean_of_the_layers_losses() -> None:
    model, some = transformer(), batch()
    layers = losses_by_layer(model, some)
    summed, mean = (objective("all_layer", reduce=reduce)(model, some) for reduce in ("sum", "mean"))
    torch.testing.assert_close(summed.loss_sum, sum(layers))
    torch.testing.assert_close(mean.loss_sum, sum(layers) / L)
    torch.testing.assert_close(summed.metrics["nll"], layers[-1])
    torch.testing.assert_close(summed.metrics["nll_layer_1"], layers[1])


def test_local_gradients_give_each_layer_the_gradient_of_its_own_loss() -> None:
    model, some = transformer(), batch()
    out = objective("local_gradients")(model, some)
    torch.testing.assert_close(out.loss_sum, sum(losses_by_layer(model, some)))
    found = gradients(model, out.loss_sum)
    for layer in range(L):
        own = gradients(model, losses_by_layer(model, some)[layer])
        for name in own:
            if name.startswith(f"stack.blocks.{layer}."):
                torch.testing.assert_close(found[name], own[name])
    first = gradients(model, losses_by_layer(model, some)[0])
    torch.testing.assert_close(found["embedding.weight"], first["embedding.weight"])


def test_gradients_cross_layers_unless_asked_to_stay_local() -> None:
    model, some = transformer(), batch()
    plain, local = (gradients(model, objective(name)(model, some).loss_sum) for name in ("all_layer", "local_gradients"))
    name = "stack.blocks.0.feedforward." + next(n for n, _ in model.stack.blocks[0].feedforward.named_parameters())
    assert not torch.allclose(plain[name], local[name], rtol=0.1)


def test_a_place_that_hardly_changes_is_not_trained_on_in_later_layers() -> None:
    model, some = transformer(), batch()
    everywhere, changing, never = (objective("local_gradients", stop_change=c)(model, some) for c in (0.0, 1e-9, 1e9))
    assert torch.equal(everywhere.loss_sum, changing.loss_sum)
    torch.testing.assert_close(never.loss_sum, sum(losses_by_layer(model, some)[:2]))  # the first change is seen after the second layer
    assert float(never.metrics["live_2"]) == 0.0
    model.eval()
    torch.testing.assert_close(objective("local_gradients", stop_change=1e9)(model, some).metrics["nll"], losses_by_layer(model, some)[-1])


def test_objectives_of_layers_say_what_model_they_need() -> None:
    class Opaque(Table):
        def forward(self, tokens: Tensor, **kwargs: Any) -> ModelOutput:
            return ModelOutput(self.logits)

    for name in ("all_layer", "confidence"):
        with pytest.raises(ValueError, match=f"objective {name}: Opaque does not give the stream of every layer"):
            objective(name)(Opaque(torch.zeros(B, T, V)), batch())


# --- confidence -------------------------------------------------------------------------------------------------------


def confidence_by_hand(model: Any, some: Batch, form: str, reward: bool = False, penalize_last: bool = False, targets: str = "true") -> tuple[float, list[int]]:
    """The table's definitions place by place; the random numbers are those of the objective. Returns loss_sum and stops by layer."""
    layers = model(some.tokens, doc_ids=some.doc_ids, want_layers=True).layers
    keep = some.mask & (some.doc_ids >= 0)
    random = [torch.rand(B, T) for _ in layers]
    total, stops = 0.0, [0] * L
    means = [0.0] * L
    for b in range(B):
        for t in range(T):
            if not keep[b, t]:
                continue
            live, before, guess = True, None, int(some.targets[b, t])
            for layer, stream in enumerate(layers):
                p_V = model.lm_head(model.final_norm(stream[b, t])).softmax(-1)
                wanted = {"true": int(some.targets[b, t]), "own": int(p_V.argmax()), "before": guess}[targets]
                ce, p, guess = -float(p_V[wanted].log()), float(p_V.max()), int(p_V.argmax())
                fired = live and bool(random[layer][b, t] < p)
                stopped = live if layer == L - 1 else fired
                pays = fired if penalize_last else stopped
                other = -1.0 if reward else 1.0
                means[layer] += ce / int(keep.sum())
                if form == "neg_ce":
                    total -= ce / L
                elif form == "exit_weighted":
                    total += ce * p * live
                elif form == "exit_or_penalty":
                    total += (ce if pays else other) * p * live
                elif form == "exit_or_penalty_prev" and before:
                    ce_before, pays_before, live_before = before
                    total += (ce_before if pays_before else other) * p * live_before
                stops[layer] += stopped
                before, live = (ce, pays, live), live and not fired
    if form == "log_one_minus_p":
        total = float(keep.sum()) * sum(float(torch.tensor(1 - torch.tensor(-m).exp()).log()) for m in means) / L
    return total, stops


FORMS = ("neg_ce", "log_one_minus_p", "exit_weighted", "exit_or_penalty", "exit_or_penalty_prev")
VARIANTS = [
    *({"form": form} for form in FORMS),
    {"form": "exit_or_penalty", "reward": True},
    {"form": "exit_or_penalty", "penalize_last": True},
    {"form": "exit_or_penalty_prev", "reward": True, "targets": "before"},
    {"form": "log_one_minus_p", "targets": "own"},
]


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_confidence_is_what_its_definition_says(variant: dict[str, Any]) -> None:
    model, some = transformer(), batch()
    out = evaluate(objective("confidence", **variant, next_token=0.0), model, some, seed=4)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        wanted, stops = confidence_by_hand(model, some, **variant)
    assert out.loss_sum.item() == pytest.approx(wanted, rel=1e-4)
    assert [float(out.metrics[f"exited_{layer}"]) for layer in range(L)] == stops
    assert sum(stops) == float(out.count)


def test_neg_ce_and_log_one_minus_p_are_added_to_the_next_tokens_loss() -> None:
    model, some = transformer(), batch()
    nats = float(objective("next_token")(model, some).loss_sum)
    for form in ("neg_ce", "log_one_minus_p"):
        added, alone = (evaluate(objective("confidence", form=form, **more), model, some).loss_sum for more in ({}, {"next_token": 0.0}))
        assert added.item() - alone.item() == pytest.approx(nats, rel=1e-5)


def test_positions_exit_in_proportion_to_confidence() -> None:
    logits = torch.zeros(400, T, V)
    logits[..., 0] = 2.0
    tokens = torch.zeros(400, T, dtype=torch.int64)
    out = evaluate(objective("confidence", form="exit_weighted"), Table(logits), Batch(tokens, tokens))
    p = float((0.4 * logits[0, 0]).softmax(-1).max())  # of the first of three layers
    assert float(out.metrics["confidence_0"] / out.count) == pytest.approx(p, rel=1e-4)
    assert float(out.metrics["exited_0"] / out.count) == pytest.approx(p, abs=0.03)


def test_confidence_counts_what_layers_guess() -> None:
    tokens = torch.arange(T)[None] % V
    out = evaluate(objective("confidence"), Table(5.0 * F.one_hot(tokens, V).float()), Batch(tokens, tokens))
    assert float(out.metrics["right_0"]) == float(out.metrics["same_1"]) == T
    out = evaluate(objective("confidence"), Table(5.0 * F.one_hot(tokens, V).float()), Batch(tokens, (tokens + 1) % V))
    assert float(out.metrics["right_2"]) == 0.0
    assert float(out.metrics["same_2"]) == T


# --- selective and distillation ---------------------------------------------------------------------------------------


def test_selective_keeps_the_highest_loss_of_each_window() -> None:
    model, some = transformer(), batch()
    keep = some.mask & (some.doc_ids >= 0)
    nats = F.cross_entropy(model.lm_head(model(some.tokens, doc_ids=some.doc_ids).hidden).flatten(0, 1), some.targets.flatten(), reduction="none").view(B, T)
    wanted, count = 0.0, 0
    for b in range(B):
        row = sorted(nats[b][keep[b]].tolist(), reverse=True)
        num = -(-len(row) * 2 // 5)
        wanted, count = wanted + sum(row[:num]), count + num
    out = objective("selective", keep_ratio=0.4)(model, some)
    assert out.loss_sum.item() == pytest.approx(wanted, rel=1e-5)
    assert float(out.count) == count


def test_selective_takes_off_what_the_reference_finds_hard(tmp_path: Path) -> None:
    some, architecture = batch(packed=False), resolve_part("architectures", {"name": "transformer", "d_model": 16, "num_heads": 2, "num_layers": L})
    model, reference = transformer(), transformer(feedforward="swiglu")
    save_model(tmp_path / "model", reference, resolve_part("architectures", architecture.dump() | {"feedforward": "swiglu"}))
    nats, hard = (F.cross_entropy(m.lm_head(m(some.tokens).hidden).transpose(1, 2), some.targets, reduction="none") for m in (model, reference))
    best = (nats - hard).topk(4, 1).indices  # 0.5 of 7, rounded up
    out = objective("selective", keep_ratio=0.5, reference=str(tmp_path))(model, some)
    torch.testing.assert_close(out.loss_sum, nats.gather(1, best).sum())
    torch.testing.assert_close(out.metrics["excess"], (nats - hard).gather(1, best).sum())
    assert not torch.equal(out.loss_sum, objective("selective", keep_ratio=0.5)(model, some).loss_sum)


def build_like_the_folder() -> Any:
    from feebcore.model.io import load_model

    return load_model(model_folder()).train()


def test_held_out_text_is_scored_on_every_token() -> None:
    model, some = transformer().eval(), batch()
    out, plain = objective("selective", keep_ratio=0.1)(model, some), objective("next_token")(model, some)
    torch.testing.assert_close(out.metrics["nll"], plain.metrics["nll"])
    assert torch.equal(out.count, plain.count)


def test_distillation_is_cross_entropy_and_divergence_mixed() -> None:
    model, some, teacher = transformer(), batch(), build_like_the_folder()
    keep = some.mask & (some.doc_ids >= 0)
    student_NV, teacher_NV = (m.lm_head(m(some.tokens, doc_ids=some.doc_ids).hidden)[keep] for m in (model, teacher))
    divergence = F.kl_div((student_NV / 3).log_softmax(-1), (teacher_NV / 3).log_softmax(-1), log_target=True, reduction="sum")
    wanted = 0.75 * F.cross_entropy(student_NV, some.targets[keep], reduction="sum") + 0.25 * 9 * divergence
    out = objective("distillation", teacher=str(model_folder()), temperature=3.0, weight=0.25)(model, some)
    torch.testing.assert_close(out.loss_sum, wanted)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    model = build_like_the_folder()
    out = objective("distillation", teacher=str(model_folder().parent), weight=1.0)(model, batch())  # an artifact's folder does too
    assert out.loss_sum.item() == pytest.approx(0.0, abs=1e-4)


def test_losses_in_chunks_are_the_same_with_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from feeb_models.objectives import common

    some = batch()
    for name, options in (("distillation", {"teacher": str(model_folder())}), ("selective", {}), ("confidence", {"form": "exit_or_penalty"})):
        model = transformer()
        whole = evaluate(objective(name, **options), model, some)
        wanted = gradients(model, whole.loss_sum)["lm_head.weight"]
        with monkeypatch.context() as patch:
            patch.setattr(common.by_chunks, "__kwdefaults__", {"most_logits": 3 * V})
            out = evaluate(objective(name, **options), model, some)
            torch.testing.assert_close(out.loss_sum, whole.loss_sum)
            torch.testing.assert_close(gradients(model, out.loss_sum)["lm_head.weight"], wanted)


def test_other_weights_in_the_teachers_folder_make_another_run(tmp_path: Path) -> None:
    architecture = resolve_part("architectures", {"name": "transformer", "d_model": 8, "num_heads": 1, "num_layers": 1})

    def identity(seed: int, folder: str) -> Any:
        save_model(tmp_path / folder / "model", build_model(architecture, V, T, seed=seed), architecture)
        return identity_of(resolve_part("objectives", {"name": "distillation", "teacher": str(tmp_path / folder)}).config)

    assert identity(0, "a") == identity(0, "b") != identity(1, "b")


def test_a_reference_that_does_not_fit_says_so(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="is not a model folder"):
        objective("selective", reference=str(tmp_path))
    architecture = resolve_part("architectures", {"name": "transformer", "d_model": 8, "num_heads": 1, "num_layers": 1})
    save_model(tmp_path / "model", build_model(architecture, V + 1, T), architecture)
    with pytest.raises(ValueError, match=rf"has {V + 1} tokens, the trained model {V}; both need the same tokenizer"):
        objective("selective", reference=str(tmp_path))(transformer(), batch())


# --- myopic -----------------------------------------------------------------------------------------------------------

ATTENTIONS = ["mha", {"name": "gqa", "num_kv_heads": 1, "qk_norm": True}]


@pytest.mark.parametrize("attention", ATTENTIONS, ids=["mha", "gqa"])
@pytest.mark.parametrize("packed", [False, True])
def test_myopic_has_the_loss_of_next_token_and_another_gradient(attention: Any, packed: bool) -> None:
    model, some = transformer(attention=attention), batch(packed)
    plain, myopic = objective("next_token")(model, some), objective("myopic")(model, some)
    torch.testing.assert_close(myopic.loss_sum, plain.loss_sum)
    one, other = gradients(model, plain.loss_sum), gradients(model, myopic.loss_sum)
    torch.testing.assert_close(one["lm_head.weight"], other["lm_head.weight"])
    assert not torch.allclose(one["embedding.weight"], other["embedding.weight"], rtol=0.05)


def test_no_gradient_of_a_later_loss_reaches_an_earlier_place() -> None:
    for name, wanted in (("next_token", True), ("myopic", False)):
        model, some = transformer(), batch(packed=False)
        mask = torch.zeros(B, T, dtype=torch.bool)
        mask[:, -1] = True
        begun: list[Tensor] = []
        model.embedding.register_forward_hook(lambda m, inputs, result, begun=begun: (result.retain_grad(), begun.append(result))[0])
        objective(name)(model, dataclasses.replace(some, mask=mask)).loss_sum.backward()
        assert bool(begun[0].grad[:, :-1].any()) is wanted
        assert begun[0].grad[:, -1].any()


def test_myopic_refuses_attention_that_goes_by_places() -> None:
    from feeb_models.attentions.multi_head.grouped_query import GroupedQueryAttention

    class Windowed(GroupedQueryAttention):
        """Sees its last three keys, by their place."""

        def forward(self, x_BTC: Tensor, context: Any) -> Tensor:
            S = x_BTC.shape[1] * (1 if context.cache is None else 2)
            near = torch.arange(S)[None] > torch.arange(S)[-x_BTC.shape[1] :, None] - 3
            mask = torch.ones(x_BTC.shape[1], S, dtype=torch.bool).tril() if context.mask_BTS is None else context.mask_BTS
            return super().forward(x_BTC, dataclasses.replace(context, masks=Masks((mask & near).expand(len(x_BTC), -1, -1))))

    model = transformer()
    for block in model.stack.blocks:
        block.attention.__class__ = Windowed
    with pytest.raises(ValueError, match="goes by the places of its keys"):
        objective("myopic").check(model)


# --- in training ------------------------------------------------------------------------------------------------------

COMPILED = [
    {"name": "local_gradients", "stop_change": 0.1},
    {"name": "confidence", "form": "exit_or_penalty_prev"},
    {"name": "selective", "reference": "a model"},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", COMPILED, ids=lambda o: o["name"])
def test_compiled_whole_an_objective_gives_the_same_loss_and_gradient(options: dict[str, Any]) -> None:
    options = {k: str(model_folder()) if v == "a model" else v for k, v in options.items()}
    model = transformer(num_layers=2)
    module = LossModule(model, objective(**options), "fp32", torch.device("cpu"))
    some = batch()
    arguments = (some.tokens, some.targets, some.mask, some.doc_ids, None)
    found = []
    for forward in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        torch._dynamo.reset()
        torch.manual_seed(2)
        loss_sum, count, metrics = forward(*arguments)
        found.append((loss_sum.detach(), count, metrics, gradients(model, loss_sum)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["all_layer", "local_gradients", "confidence", "selective", "distillation", "myopic"])
def test_a_frozen_model_is_no_part_of_what_is_trained(name: str) -> None:
    options = {"teacher": str(model_folder())} if name == "distillation" else {"reference": str(model_folder())} if name == "selective" else {}
    model = transformer()
    module = LossModule(model, objective(name, **options), "bf16", torch.device("cpu"))
    assert {p.data_ptr() for p in module.parameters()} == {p.data_ptr() for p in model.parameters()}
    some = batch()
    loss_sum, count, _ = module(some.tokens, some.targets, some.mask, some.doc_ids, None)
    assert loss_sum.dtype == torch.float32
    assert all(g is not None and g.isfinite().all() for g in gradients(model, loss_sum / count).values())


@pytest.mark.parametrize("name", ["distillation", "selective"])
def test_a_model_that_does_not_learn_costs_one_forward(name: str) -> None:
    model, folder = transformer(), str(model_folder())
    learning = objective(name, **{"teacher" if name == "distillation" else "reference": folder})
    frozen = count_flops(build_like_the_folder(), T)[0]
    assert training_flops(model, learning, T) == pytest.approx((3 * count_flops(model, T)[0] + frozen) / T, rel=1e-12)
