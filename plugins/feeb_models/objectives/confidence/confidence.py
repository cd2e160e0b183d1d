"""Losses on the confidence of intermediate layers, and early exit that is sampled with that confidence.

At layer l a position has p = max softmax(head(final_norm(stream_l))), ce = -log softmax(...)[label], and is live until it exits:
at random with probability p, and at the last layer at the latest. L layers, N targets, sums over l:

    neg_ce                 next token + sum_l (1/N) sum_t -ce / L
    log_one_minus_p        next token + sum_l log(1 - exp(-mean_t ce)) / L
    exit_weighted          sum_l (1/N) sum_t ce p live
    exit_or_penalty        sum_l (1/N) sum_t (ce where it exits, else 1) p live     live positions that do not exit pay their confidence
    exit_or_penalty_prev   the same with ce, exits and live of the previous layer and p of this one

`next token` is the last layer's plain cross-entropy, times `next_token` (default 1 for the first two forms, else 0).
log_one_minus_p uses the mean of the batch, so it depends on the micro-batch by definition. The exit forms alone hardly learn
next-token prediction: lowering confidence is cheaper than being right. No gradient flows through exits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.objectives.common import by_chunks, earlier_heads, loss_mask_or_ones, run_with_layers, with_auxiliary
from feeb_models.objectives.confidence import ConfidenceConfig
from feebcore.protocols import Batch, BuildContext, LanguageModel, Objective, ObjectiveOutput

LEAST_NLL = 1e-6  # log(1 - exp(-ce)) has no floor


class Confidence(Objective):
    """metrics, sums over unmasked targets: nll, of the last layer; and for each layer l, from 0: exited_l, positions that exit
    there; confidence_l, p; right_l, positions where its top-1 token is the next token; same_l, where it is also the top-1 token
    of the previous layer."""

    def __init__(self, config: ConfidenceConfig, context: BuildContext) -> None:
        self.config = config
        self.next_token = config.next_token if config.next_token is not None else float(config.form in ("neg_ce", "log_one_minus_p"))

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        form, config = self.config.form, self.config
        output, hiddens = run_with_layers("confidence", model, batch)
        mask_BT = loss_mask_or_ones(batch)
        weight_BT, targets_BT = mask_BT.float(), batch.targets.masked_fill(~mask_BT, 0)
        count, num_layers, last = weight_BT.sum(), len(hiddens), len(hiddens) - 1
        live_BT, before, guess_before_BT = torch.ones_like(mask_BT), None, None
        loss_sum = true_BT = torch.zeros((), device=weight_BT.device)
        metrics: dict[str, Tensor] = {}
        for number, hidden_BTC in enumerate(hiddens):
            labels_BT = targets_BT if config.targets != "before" or guess_before_BT is None else guess_before_BT
            true_BT, ce_BT, p_BT, guess_BT = judge(model.lm_head, hidden_BTC, targets_BT, labels_BT, config.targets == "own", model.vocab_size)
            sampled_BT = live_BT & (torch.rand(p_BT.shape, device=p_BT.device) < p_BT.detach())
            exits_BT = live_BT if number == last else sampled_BT
            paying_BT = sampled_BT if config.penalize_last else exits_BT
            if form == "neg_ce":
                loss_sum = loss_sum - (ce_BT * weight_BT).sum() / num_layers
            elif form == "log_one_minus_p":
                mean = (ce_BT * weight_BT).sum() / count.clamp(min=1.0)
                loss_sum = loss_sum + count * torch.log(-torch.expm1(-mean.clamp(min=LEAST_NLL))) / num_layers
            elif form == "exit_weighted":
                loss_sum = loss_sum + (ce_BT * p_BT * live_BT * weight_BT).sum()
            elif form == "exit_or_penalty":
                loss_sum = loss_sum + (self.cost(ce_BT, paying_BT) * p_BT * live_BT * weight_BT).sum()
            elif before is not None:
                ce_before_BT, exits_before_BT, live_before_BT = before
                loss_sum = loss_sum + (self.cost(ce_before_BT, exits_before_BT) * p_BT * live_before_BT * weight_BT).sum()
            metrics |= {f"exited_{number}": (exits_BT * weight_BT).sum(), f"confidence_{number}": (p_BT.detach() * weight_BT).sum()}
            metrics[f"right_{number}"] = ((guess_BT == targets_BT) * weight_BT).sum()
            if guess_before_BT is not None:
                metrics[f"same_{number}"] = ((guess_BT == guess_before_BT) * weight_BT).sum()
            before, guess_before_BT = (ce_BT, paying_BT, live_BT), guess_BT
            live_BT = live_BT & ~sampled_BT
        nll = (true_BT * weight_BT).sum()
        loss_sum = with_auxiliary(loss_sum + self.next_token * nll, count, output)
        return ObjectiveOutput(loss_sum, count, {"nll": nll.detach()} | metrics)

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        return earlier_heads(model, length), 0.0

    def cost(self, ce_BT: Tensor, sampled_BT: Tensor) -> Tensor:
        """[B,T]: what a unit of confidence costs: ce where the position exits, else 1, or -1 if confidence is rewarded."""
        return torch.where(sampled_BT, ce_BT, -1.0 if self.config.reward else 1.0)


def judge(head: nn.Module, hidden_BTC: Tensor, targets_BT: Tensor, labels_BT: Tensor, own: bool, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[B,T] each: -log p of the target, -log p of the label (own: of the top-1 token itself), probability and id of the top-1 token."""

    def values(hidden_NC: Tensor, targets_N: Tensor, labels_N: Tensor) -> tuple[Tensor, ...]:
        log_p_NV = head(hidden_NC).float().log_softmax(-1)
        best_N, guess_N = log_p_NV.max(-1)
        true_N = -log_p_NV.gather(1, targets_N[:, None])[:, 0]
        ce_N = -best_N if own else -log_p_NV.gather(1, labels_N[:, None])[:, 0]
        return true_N, ce_N, best_N.exp(), guess_N

    values_N = by_chunks(values, hidden_BTC.flatten(0, 1), targets_BT.flatten(), labels_BT.flatten(), vocab_size=vocab_size)
    true_BT, ce_BT, p_BT, guess_BT = (x.view_as(targets_BT) for x in values_N)
    return true_BT, ce_BT, p_BT, guess_BT
