"""Which experts a token goes to, and how much each of them counts. K of E experts; always in fp32.

    softmax   p = softmax(W x);          the K largest p          (arXiv:1701.06538, arXiv:2101.03961)
    gumbel    p = softmax(W x + s g);    the K largest p          g ~ Gumbel in training, 0 in evaluation (arXiv:1611.01144)
    sigmoid   p = sigmoid(W x);          the K largest p + b      (arXiv:2408.15664, arXiv:2412.19437)

The gate of a chosen expert is its p, divided by their sum with `normalize`, times `gate_scale`. b is no weight: after every
optimizer step b_e += rate * sign(mean load - load_e), the load being the tokens that came to e in that step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.feedforwards.moe import MoeConfig
from feebcore.model.counting import ModelPart
from feebcore.protocols import BuildContext


class Routing(NamedTuple):
    """experts [B,T,K] int64, gates [B,T,K]; of all experts: logits and shares [B,T,E] (these sum to 1), load [B,E] int64:
    how many of a row's tokens chose each. real [B,T] bool: tokens that are no padding, None where all are; padding is routed, but
    neither loads, losses nor capacity know of it."""

    experts_BTK: Tensor
    gates_BTK: Tensor
    logits_BTE: Tensor
    shares_BTE: Tensor
    load_BE: Tensor
    real_BT: Tensor | None = None


class Router(ModelPart):
    """Softmax over the experts, with Gumbel noise of size `noise` in training."""

    def __init__(self, config: MoeConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_experts, self.top_k = config.num_experts, config.top_k
        self.normalize, self.gate_scale = config.normalizes, config.gate_scale
        self.noise = config.noise if config.router == "gumbel" else 0.0
        self.scores = nn.Linear(context.d_model, config.num_experts, bias=False)

    def forward(self, x_BTC: Tensor, real_BT: Tensor | None = None) -> Routing:
        with torch.autocast(x_BTC.device.type, enabled=False):
            logits_BTE = F.linear(x_BTC.float(), self.scores.weight.float())
            scores_BTE, shares_BTE = self.score(logits_BTE)
            experts_BTK = self.choose(scores_BTE.detach())
            gates_BTK = scores_BTE.gather(-1, experts_BTK)
            if self.normalize:
                gates_BTK = gates_BTK / gates_BTK.sum(-1, keepdim=True).clamp(min=1e-20)
        number_E = torch.arange(self.num_experts, device=x_BTC.device)
        chosen_BTKE = experts_BTK[..., None] == number_E
        load_BE = (chosen_BTKE if real_BT is None else chosen_BTKE & real_BT[..., None, None]).sum((1, 2))
        return Routing(experts_BTK, gates_BTK * self.gate_scale, logits_BTE, shares_BTE, load_BE, real_BT)

    def score(self, logits_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """Each expert's score, and the scores as shares of 1."""
        if self.noise and self.training:
            uniform_BTE = torch.rand_like(logits_BTE).clamp(1e-20, 1 - 2**-24)
            logits_BTE = logits_BTE - self.noise * (-uniform_BTE.log()).log()
        shares_BTE = logits_BTE.softmax(-1)
        return shares_BTE, shares_BTE

    def choose(self, scores_BTE: Tensor) -> Tensor:
        return scores_BTE.topk(self.top_k, dim=-1).indices


class BiasedRouter(Router):
    """Sigmoid scores, balanced by a bias that only chooses: it enters no gate, and no gradient.

    The bias moves once per optimizer step (`after_optimizer_step`), by the loads of all training passes of that step on all
    ranks. A pass that is computed again for its gradient counts twice, which changes no sign. Bias and loads are persistent
    buffers, so a run resumes exactly. Evaluation changes nothing.
    """

    bias: Tensor
    load: Tensor

    def __init__(self, config: MoeConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.rate = config.bias_rate
        self.register_buffer("bias", torch.zeros(config.num_experts))
        self.register_buffer("load", torch.zeros(config.num_experts))

    def forward(self, x_BTC: Tensor, real_BT: Tensor | None = None) -> Routing:
        routing = super().forward(x_BTC, real_BT)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.load.add_(routing.load_BE.sum(0).to(self.load.dtype))
        return routing

    def score(self, logits_BTE: Tensor) -> tuple[Tensor, Tensor]:
        scores_BTE = logits_BTE.sigmoid()
        return scores_BTE, scores_BTE / scores_BTE.sum(-1, keepdim=True).clamp(min=1e-20)

    def choose(self, scores_BTE: Tensor) -> Tensor:
        return super().choose(scores_BTE + self.bias)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        load_E = _over_ranks(self.load.clone())
        self.bias.add_(self.rate * torch.sign(load_E.mean() - load_E))
        self.load.zero_()


def _over_ranks(load_E: Tensor) -> Tensor:
    """The sum over ranks, so that all of them move their bias alike."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(load_E)
    return load_E


def balance_loss(routing: Routing) -> Tensor:
    """E sum_e f_e P_e, f_e the share of a row's choices that fell on e and P_e its mean share of the scores; mean over rows.

    1 when balanced, E when all goes to one (arXiv:2101.03961, equation 4). A row at a time (arXiv:2412.19437, equation 17),
    so that it does not depend on how a batch is cut into micro-batches.
    """
    chosen_BE = routing.load_BE / routing.load_BE.sum(-1, keepdim=True).clamp(min=1)
    return routing.load_BE.shape[-1] * (chosen_BE * mean_of_real(routing.shares_BTE, routing.real_BT)).sum(-1).mean()


def z_loss(routing: Routing) -> Tensor:
    """Mean of (log sum_e exp logit_e)^2: keeps the router's logits small (arXiv:2202.08906, equation 5)."""
    return mean_of_real(routing.logits_BTE.logsumexp(-1, keepdim=True).square(), routing.real_BT).mean()


def mean_of_real(x_BTE: Tensor, real_BT: Tensor | None) -> Tensor:
    """[B,E]: the mean over a row's tokens that are no padding; 0 for a row of padding."""
    if real_BT is None:
        return x_BTE.mean(1)
    return (x_BTE * real_BT[..., None]).sum(1) / real_BT.sum(1, keepdim=True).clamp(min=1)
