"""Mixture of experts."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

import feebcore as feeb
from feeb_models.feedforwards.options import ExpansionConfig


class MoeConfig(ExpansionConfig):
    inert = ("bias_rate",)  # what an optimizer step changes
    num_experts: int = Field(8, ge=2, description="number of routed experts (n_routed_experts)")
    top_k: int = Field(2, ge=1, description="routed experts per token (num_experts_per_tok)")
    num_shared: int = Field(2, ge=0, description="number of shared experts, applied to every token (n_shared_experts)")
    expansion_ratio: float = Field(2 / 3, gt=0, description="width of one expert / d_model; the width is rounded to a multiple of 32")
    intermediate_size: int | None = Field(None, ge=1, description="width of one expert; takes precedence over expansion_ratio")
    activation: Literal["swiglu", "geglu", "gelu", "relu", "relu_squared"] = Field("swiglu", description="activation of an expert")
    router: Literal["softmax", "gumbel", "sigmoid"] = Field(
        "softmax",
        description="softmax: softmax gates; gumbel: softmax with Gumbel noise in training; sigmoid: independent sigmoid gates with auxiliary-loss-free bias balancing (DeepSeek-V3)",
    )
    normalize: bool | None = Field(
        None, description="normalize the gates of the selected experts to sum to 1 (norm_topk_prob); default: only with router sigmoid and top_k above 1"
    )
    gate_scale: float = Field(1.0, gt=0, description="factor on the gates (routed_scaling_factor)")
    noise: float = Field(1.0, ge=0, description="router gumbel: scale of the Gumbel noise on the logits")
    bias_rate: float = Field(1e-3, ge=0, description="router sigmoid: step size of the balancing bias per optimizer step")
    balance_loss: float | None = Field(
        None, ge=0, description="weight of the load-balancing loss (router_aux_loss_coef); default: 0.01, for router sigmoid 0.0001"
    )
    z_loss: float = Field(0.0, ge=0, description="router z-loss: weight of the mean squared logsumexp of the router logits; typically 0.001")
    capacity: float | None = Field(
        None,
        gt=0,
        description="capacity factor: in training an expert processes at most capacity * top_k / num_experts of the tokens of a sequence, the first ones; default: no limit",
    )

    @property
    def normalizes(self) -> bool:
        return (self.router == "sigmoid" and self.top_k > 1) if self.normalize is None else self.normalize

    @property
    def balance_weight(self) -> float:
        return (1e-4 if self.router == "sigmoid" else 1e-2) if self.balance_loss is None else self.balance_loss

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k {self.top_k} of {self.num_experts} experts; set top_k to {self.num_experts} or less, or num_experts to {self.top_k} or more"
            )
        if self.normalize and self.top_k == 1:
            raise ValueError("normalize with top_k 1 makes every gate 1, and the router never learns; leave normalize out, or set top_k to 2 or more")
        return self


PART = feeb.FeedforwardSpec(
    "moe",
    MoeConfig,
    build=f"{__name__}.moe:MixtureOfExperts",
    summary="Mixture of experts: shared experts and the top k routed ones per token; dropless unless capacity is set.",
    reference="arXiv:2401.06066",
    since="1.1",
    equation="y = shared(x) + Σ_{e in top_k of p} gate_scale p_e expert_e(x),   p = softmax(W_r x),   expert_e(x) = W2_e (silu(W1_e x) * W3_e x)\n"
    "loss + balance_loss E Σ_e f_e P_e      f_e: fraction of a sequence's choices that fell on e, P_e: mean of p_e over the sequence",
    revision=3,  # the balancing bias moves right after the optimizer step
)
