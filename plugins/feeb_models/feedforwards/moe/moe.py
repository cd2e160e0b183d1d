"""Mixture of experts: every token goes through the shared experts and K of the E routed ones.

    y = shared(x) + sum_k gate_k expert_{i_k}(x)

Experts are narrow feedforwards, their weights stacked [E, out, in]. Dropless by default: choices are sorted by expert and
each expert multiplies the rows it got (grouped_linear.py), so no token's result depends on another's. With `capacity` c an expert
takes at most ceil(c K T / E) tokens of a row of T in training, the first ones; later ones get nothing from it. That stays
causal and keeps rows apart, but what a packed document gets then depends on the documents before it in the row. Padding takes
no place. In evaluation nothing is dropped.

Cost per token: (num_shared + K) experts; with capacity c num_shared + c K, as empty places are multiplied too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from feeb_models.feedforwards.dense.dense import ACTIVATIONS
from feeb_models.feedforwards.moe import MoeConfig
from feeb_models.feedforwards.moe.grouped_linear import BatchedLinear, grouped_linear
from feeb_models.feedforwards.moe.routers import BiasedRouter, Router, Routing, balance_loss, z_loss
from feebcore.model.context import ForwardContext
from feebcore.model.parts import FeedforwardPart, ModelPart, ResidualLinear
from feebcore.protocols import BuildContext


class Experts(ModelPart):
    """E feedforwards of width F, W2 f(W1 x) or W2 (f(W1 x) * W3 x), W1 above W3 in one matrix."""

    def __init__(self, number: int, d_model: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[activation]
        self.up = nn.Parameter(torch.empty(number, hidden * (2 if self.gated else 1), d_model))
        self.down = nn.Parameter(torch.empty(number, d_model, hidden))
        self.row_blocks = {"up": (hidden, hidden)} if self.gated else {}

    def init_weights(self, std: float, residual_std: float) -> None:
        nn.init.normal_(self.up, std=std)
        nn.init.normal_(self.down, std=residual_std)

    def grouped(self, x_NC: Tensor, ends_E: Tensor) -> Tensor:
        """Rows sorted by expert, those of expert e ending at ends[e]."""
        return grouped_linear(self.middle(grouped_linear(x_NC, self.up, ends_E)), self.down, ends_E)

    def batched(self, x_ENC: Tensor) -> Tensor:
        """As many rows for each expert."""
        h_ENF: Tensor = BatchedLinear.apply(x_ENC, self.up)  # type: ignore[no-untyped-call]
        return BatchedLinear.apply(self.middle(h_ENF), self.down)  # type: ignore[no-any-return, no-untyped-call]

    def middle(self, h: Tensor) -> Tensor:
        if not self.gated:
            return self.activation(h)
        gate, value = h.chunk(2, dim=-1)
        return self.activation(gate) * value


class SharedExperts(ModelPart):
    """Experts that see every token are one feedforward as wide as all of them: the sum over experts is in its last matrix."""

    def __init__(self, d_model: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[activation]
        self.hidden = nn.Linear(d_model, hidden * (2 if self.gated else 1), bias=False)
        self.row_blocks = {"hidden.weight": (hidden, hidden)} if self.gated else {}
        self.out = ResidualLinear(hidden, d_model, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        h_BTF = self.hidden(x_BTC)
        if not self.gated:
            return self.out(self.activation(h_BTF))
        gate_BTF, value_BTF = h_BTF.chunk(2, dim=-1)
        return self.out(self.activation(gate_BTF) * value_BTF)


class MixtureOfExperts(FeedforwardPart):
    """See the top of the file. Auxiliary losses `router_balance` and `router_z` are added in training only."""

    def __init__(self, config: MoeConfig, context: BuildContext) -> None:
        super().__init__()
        hidden, self.config, self.num_experts = config.width(context.d_model), config, config.num_experts
        self.router = (BiasedRouter if config.router == "sigmoid" else Router)(config, context)
        self.experts = Experts(config.num_experts, context.d_model, hidden, config.activation)
        self.shared = SharedExperts(context.d_model, config.num_shared * hidden, config.activation) if config.num_shared else None

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        routing = self.router(x_BTC, None if context.doc_ids_BT is None else context.doc_ids_BT >= 0)
        if self.training:
            if self.config.balance_weight:
                context.add_loss("router_balance", self.config.balance_weight * balance_loss(routing))
            if self.config.z_loss:
                context.add_loss("router_z", self.config.z_loss * z_loss(routing))
        kind = x_BTC.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_BTC.dtype
        limited = self.config.capacity is not None and self.training
        with torch.autocast(kind, enabled=False):
            y_BTC = (self._limited(x_BTC.to(dtype), routing) if limited else self._dropless(x_BTC.to(dtype), *routing[:2])).to(dtype)
        return y_BTC if self.shared is None else y_BTC + self.shared(x_BTC)

    def _dropless(self, x_BTC: Tensor, experts_BTK: Tensor, gates_BTK: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        K = experts_BTK.shape[-1]
        order_1J, place_1J, ends_1E = by_expert(experts_BTK.reshape(1, -1), self.config.num_experts)
        sorted_JC = x_BTC.reshape(-1, C).index_select(0, order_1J[0] // K)
        chosen_JC = self.experts.grouped(sorted_JC, ends_1E[0]).index_select(0, place_1J[0])
        return (chosen_JC.view(B, T, K, C) * gates_BTK[..., None]).sum(2)

    def _limited(self, x_BTC: Tensor, routing: Routing) -> Tensor:
        B, T, C = x_BTC.shape
        K, E, S = routing.experts_BTK.shape[-1], self.config.num_experts, self.places(T)
        experts_BTK = routing.experts_BTK
        if routing.real_BT is not None:  # padding takes no place: it stands after the last expert's
            experts_BTK = experts_BTK.masked_fill(~routing.real_BT[..., None], E)
        experts_BJ = experts_BTK.reshape(B, T * K)
        order_BJ, place_BJ, ends_BE = by_expert(experts_BJ, E)
        starts_BE = torch.cat([torch.zeros_like(ends_BE[:, :1]), ends_BE[:, :-1]], 1)
        slot_S, row_B = torch.arange(S, device=x_BTC.device), torch.arange(B, device=x_BTC.device)
        # slots that nobody fills hold some token too; their results are never read
        filled_BES = (starts_BE[..., None] + slot_S).clamp(max=T * K - 1)
        source_BES = order_BJ.gather(1, filled_BES.flatten(1)).view(B, E, S) // K + T * row_B[:, None, None]
        input_ENC = x_BTC.reshape(-1, C).index_select(0, source_BES.transpose(0, 1).flatten()).view(E, B * S, C)
        expert_NC = self.experts.batched(input_ENC).flatten(0, 1)
        taken_BJ = experts_BJ.clamp(max=E - 1)
        rank_BJ = (place_BJ - starts_BE.gather(1, taken_BJ)).masked_fill(experts_BJ == E, S)
        slot_BJ = (taken_BJ * B + row_B[:, None]) * S + rank_BJ.clamp(max=S - 1)
        chosen_BTKC = expert_NC.index_select(0, slot_BJ.flatten()).view(B, T, K, C)
        fits_BTK = (rank_BJ < S).view(B, T, K)
        return (chosen_BTKC * (routing.gates_BTK * fits_BTK)[..., None]).sum(2)

    def places(self, length: int) -> int:
        """How many of a row's tokens an expert takes at most."""
        assert self.config.capacity is not None
        return min(length, math.ceil(self.config.capacity * length * self.config.top_k / self.config.num_experts))

    @torch.no_grad()
    def expert_load(self, x_BTC: Tensor) -> dict[str, Tensor]:
        """How this input is spread; changes nothing. share [E]: of the choices, sums to 1. entropy: of the shares, as a share of
        ln E: 1 balanced, 0 all on one. dropped: the share of choices beyond the capacity in training."""
        training = self.training
        self.router.eval()
        load_BE = self.router(x_BTC).load_BE.double()
        self.router.train(training)
        share_E = load_BE.sum(0) / load_BE.sum()
        entropy = torch.special.entr(share_E).sum() / math.log(max(2, self.config.num_experts))
        limit = x_BTC.shape[1] if self.config.capacity is None else self.places(x_BTC.shape[1])
        return {"share": share_E, "entropy": entropy, "dropped": (load_BE - limit).clamp(min=0).sum() / load_BE.sum()}

    def extra_flops(self, length: int) -> tuple[float, float]:
        """Of the routed experts; causal leaves out places that capacity keeps and nobody needs."""
        one = 2.0 * (self.experts.up[0].numel() + self.experts.down[0].numel())
        used = length * self.config.top_k
        limited = self.config.capacity is not None and self.training
        full = self.config.num_experts * self.places(length) if limited else used
        return one * full, one * min(full, used)


def by_expert(experts_BJ: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's choices sorted by expert, earlier ones first: order [B,J] (which choice stands at each place), place [B,J]
    (where each choice stands) and ends [B,E] (where each expert's places end). int64."""
    sorted_BJ, order_BJ = experts_BJ.sort(dim=1, stable=True)
    number_BE = torch.arange(number, device=experts_BJ.device).expand(len(experts_BJ), -1).contiguous()
    return order_BJ, order_BJ.argsort(dim=1), torch.searchsorted(sorted_BJ, number_BE, right=True)
