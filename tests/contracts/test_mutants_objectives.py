"""Deliberately broken objectives: each is caught by a named check, which the right form of it passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import feebcore as feeb
from feeb_models.objectives.all_layer.all_layer import AllLayer
from feeb_models.objectives.multi_token import MultiTokenConfig
from feeb_models.objectives.multi_token import multi_token as multi_token_file
from feeb_models.objectives.multi_token.multi_token import MultiToken
from feeb_models.objectives.options import NextTokenConfig
from feeb_models.objectives.selective import SelectiveConfig
from feeb_models.objectives.selective.selective import Selective
from feebcore.parts import Part, resolve_part
from feebcore.protocols import Batch, BuildContext, LanguageModel, Objective, ObjectiveOutput
from feebcore.testing import check_part, checks_for


def plain(
    model: LanguageModel,
    batch: Batch,
    *,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
    nats: Callable[[Tensor, Tensor], Tensor] = lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none"),
    finish: Callable[[Tensor, Tensor, Batch], tuple[Tensor, Tensor]] = lambda nats, mask, batch: ((nats * mask).sum(), mask.sum()),
    auxiliary: bool = True,
    upcast: bool = True,
) -> ObjectiveOutput:
    """Next-token cross-entropy, written out, each step of it to be replaced."""
    batch = prepare(batch)
    output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)
    mask = torch.ones_like(batch.targets, dtype=torch.bool) if batch.mask is None else batch.mask
    if batch.doc_ids is not None:
        mask = mask & (batch.doc_ids >= 0)
    logits_BTV = model.lm_head(output.hidden)
    nats_BT = nats(logits_BTV.float() if upcast else logits_BTV, batch.targets.masked_fill(~mask, 0)).view_as(batch.targets)
    loss_sum, count = finish(nats_BT, mask.float(), batch)
    for extra in output.losses.values() if auxiliary else ():
        loss_sum = loss_sum + extra * count
    return ObjectiveOutput(loss_sum, count)


def part(build: Callable[..., Any], config: type[feeb.PartConfig] = NextTokenConfig, **options: Any) -> Part:
    return Part("objectives", feeb.ObjectiveSpec("mutant", config, build=build, summary="A broken part."), config(**options))


def mutant(**changes: Any) -> Part:
    class Mutant(Objective):
        def __init__(self, config: NextTokenConfig, context: BuildContext) -> None:
            pass

        def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
            return plain(model, batch, **changes)

    return part(Mutant)


def double_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.softmax(-1).flatten(0, 1), targets.flatten(), reduction="none")


def log_of_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    return -logits.softmax(-1).log().gather(2, targets[..., None])


def score_alone(logits: Tensor, targets: Tensor) -> Tensor:
    return -logits.gather(2, targets[..., None])


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Brier's score: bounded, so being sure and wrong costs no more than being wrong."""
    return (logits.softmax(-1) - F.one_hot(targets, logits.shape[-1])).square().sum(-1)


def over_padding(nats: Tensor, mask: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return (nats * mask).sum(), torch.tensor(float(mask.numel()))


def padded_targets_counted(nats: Tensor, mask: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return (nats * mask).sum(), batch.mask.float().sum() if batch.mask is not None else mask.sum()


def mean_of_row_means(nats: Tensor, mask: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Short rows weigh as much as long ones, in the batch but not in a row alone."""
    return ((nats * mask).sum(1) / mask.sum(1)).mean() * mask.sum(), mask.sum()


def targets_of_its_own(batch: Batch) -> Batch:
    """The inputs one place on: right for a plain stream, but not what the loader says."""
    return dataclasses.replace(batch, targets=torch.cat([batch.tokens[:, 1:], batch.targets[:, -1:]], 1))


def rolled(batch: Batch, by: int) -> Batch:
    return dataclasses.replace(batch, targets=batch.targets.roll(-by, 1))


NEXT_TOKEN = {
    "loss averaged over padding too": (mutant(finish=over_padding), "loss_mask_is_respected"),
    "padded targets counted": (mutant(finish=padded_targets_counted), "padding_is_left_out"),
    "rows averaged before the batch": (mutant(finish=mean_of_row_means), "adds_up_over_rows"),
    "softmax before cross-entropy": (mutant(nats=double_softmax), "confident_errors_are_penalized"),
    "no upcast before softmax": (mutant(upcast=False), "logits_are_raised_to_fp32"),
    "bounded score": (mutant(nats=squared_error), "confident_errors_are_penalized"),
    "log of softmax": (mutant(nats=log_of_softmax), "large_logits_stay_finite"),
    "no log-sum-exp": (mutant(nats=score_alone), "logits_are_normalized"),
    "targets shifted by two": (mutant(prepare=lambda b: rolled(b, 2)), "targets_are_aligned"),
    "targets shifted by two, learning": (mutant(prepare=lambda b: rolled(b, 2)), "learns_next_token"),
    "inputs as targets, learning": (mutant(prepare=lambda b: dataclasses.replace(b, targets=b.tokens)), "learns_next_token"),
    "targets made from the inputs": (mutant(prepare=targets_of_its_own), "learns_next_token"),
    "auxiliary losses dropped": (mutant(auxiliary=False), "auxiliary_losses_are_added"),
}


def multi_token(**changes: Any) -> Part:
    """multi_token for three tokens with functions of its file replaced while it runs."""

    class Mutant(MultiToken):
        def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
            with pytest.MonkeyPatch.context() as patch:
                for name, change in changes.items():
                    patch.setattr(multi_token_file, name, change)
                return super().__call__(model, batch)

    return part(Mutant, MultiTokenConfig, k=3)


right_targets = multi_token_file.targets_at


def across_documents(batch: Batch, distance: int) -> tuple[Tensor, Tensor]:
    targets, mask = right_targets(dataclasses.replace(batch, doc_ids=None), distance)
    return targets, mask if batch.doc_ids is None else mask & (batch.doc_ids >= 0)


def around_the_window(batch: Batch, distance: int) -> tuple[Tensor, Tensor]:
    """The first tokens of a window follow its last ones."""
    return batch.targets.roll(1 - distance, 1), right_targets(batch, 1)[1]


FURTHER = {
    "further tokens of the next document": (multi_token(targets_at=across_documents), "documents_are_independent"),
    "further tokens one place too near": (multi_token(targets_at=lambda batch, distance: right_targets(batch, distance - 1)), "targets_are_aligned"),
    "further tokens around the window's end": (multi_token(targets_at=around_the_window), "loss_mask_is_respected"),
}


class MeanOverPlaces(AllLayer):
    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        out = super().__call__(model, batch)
        return dataclasses.replace(out, loss_sum=out.loss_sum / out.count)


class DetachedLoss(AllLayer):
    """Half of the layers' loss is looked at, not learned."""

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        out = super().__call__(model, batch)
        return dataclasses.replace(out, loss_sum=(out.loss_sum + out.loss_sum.detach()) / 2)


class SelectedInBatch(Selective):
    """The choice is made among all rows at once."""

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        one_row = Batch(*(x.reshape(1, -1) if x is not None else None for x in (batch.tokens, batch.targets, batch.mask)))  # type: ignore[arg-type]

        class Flat:
            lm_head, vocab_size, training = model.lm_head, model.vocab_size, True

            def __call__(self, tokens: Tensor, **kwargs: Any) -> Any:
                output = model(batch.tokens, **kwargs)
                return dataclasses.replace(output, hidden=output.hidden.flatten(0, 1)[None])

        return super().__call__(Flat(), one_row)  # type: ignore[arg-type]


class UncountedHeads(AllLayer):
    """Every layer's logits cost nothing, it says."""

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        return 0.0, 0.0


OTHERS = {
    "heads of earlier layers not counted": (part(UncountedHeads, resolve_part("objectives", "all_layer").spec.config), "extra_flops_are_declared"),
    "layers averaged over places": (part(MeanOverPlaces, resolve_part("objectives", "all_layer").spec.config), "adds_up_over_rows"),
    "layers' loss half detached": (part(DetachedLoss, resolve_part("objectives", "all_layer").spec.config), "gradient_matches_differences"),
    "selected among the rows of a micro-batch": (part(SelectedInBatch, SelectiveConfig, keep_ratio=0.3), "adds_up_over_rows"),
}

MUTANTS = NEXT_TOKEN | FURTHER | OTHERS


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_check(name: str) -> None:
    broken, wanted = MUTANTS[name]
    (result,) = check_part("objectives", broken, only=[wanted])
    assert not result.passed, f"{name} passed {wanted}"
    assert "it raised" not in result.message, result.message


def test_the_right_forms_of_the_mutants_pass() -> None:
    rights = (mutant(), multi_token(), part(AllLayer, resolve_part("objectives", "all_layer").spec.config), part(Selective, SelectiveConfig, keep_ratio=0.3))
    wanted = {check.name for check in checks_for("objectives") if "objectives" in check.kinds}
    assert {check for _, check in MUTANTS.values()} <= wanted
    broken = [str(result) for right in rights for result in check_part("objectives", right, only=wanted) if not result.passed]
    assert not broken, "\n".join(broken)
