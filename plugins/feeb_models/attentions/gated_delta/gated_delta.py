"""Gated delta rule (arXiv:2412.06464): a recurrence over a state S [K,V] per head instead of attention over all tokens.

    S_t = a_t S_{t-1} + k_t u_t^T,   u_t = b_t (v_t - a_t S_{t-1}^T k_t);      o_t = S_t^T q_t
    y_t = W_out (norm(o_t) * silu(W_g x_t))

q, k, v = silu(conv(W x)), conv a short causal convolution per channel; q and k have unit norm. a = exp(-A softplus(W_a x + d)) is
how much of the state is kept, b = sigmoid(W_b x) how much of the value stored under k_t is overwritten.

In training, c tokens (a chunk) are computed in parallel: with g_t = sum log a over the chunk up to t and S the state before it,

    (I + M) U = b (V - e^g K S),   M_ts = b_t e^(g_t - g_s) k_t.k_s for s < t
    O = e^g Q S + L U,             L_ts = e^(g_t - g_s) q_t.k_s for s <= t
    S' = e^(g_c) S + sum_s e^(g_c - g_s) k_s u_s^T

A token at a time, that is the recurrence, with which a cache of fixed size decodes. Another document than that of the last
token before a chunk sees no S, and pairs of tokens of two documents count as 0: documents are isolated as with a mask.
Everything but the linear maps is in fp32. Cost per token of T: 4 c K + 2 c V + 6 K V FLOPs per head instead of 4 T D; solving for U
(c V) is left out of declared FLOPs, as PyTorch's counter leaves it out.
"""

from __future__ import annotations

import importlib.util
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.attentions.gated_delta import GatedDeltaConfig
from feeb_models.normalized_linear import l2_normalize
from feebcore.model.constant_result import constant_result
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart, ResidualLinear
from feebcore.protocols import BuildContext

FORGET = -50.0
"""log a of a document's first token for kernels that know no mask: e^-50 of a state is nothing next to what is written into it. Where
documents lie stays on the device so; their list of lengths would have to be waited for. -inf would leave NaN in differences."""


class GatedDelta(AttentionPart):
    """decay [H]: log A; shift [H]: d; filter: the convolution, [conv, H (2 K + V)] flat, so that optimizers see no matrix."""

    def __init__(self, config: GatedDeltaConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.chunk, self.conv = context.num_heads, context.head_dim, config.chunk, config.conv_kernel_size
        self.value_dim = config.value_dim or context.head_dim
        H, values = self.num_heads, self.num_heads * self.value_dim
        self.width = H * 2 * self.key_dim + values
        self.qkv = nn.Linear(context.d_model, self.width, bias=False)
        self.rates = nn.Linear(context.d_model, 2 * H, bias=False)
        self.row_blocks = {"qkv.weight": (H * self.key_dim, H * self.key_dim, values), "rates.weight": (H, H)}
        self.gate = nn.Linear(context.d_model, values, bias=False)
        self.out = ResidualLinear(values, context.d_model, bias=False)
        self.norm = nn.RMSNorm(self.value_dim, eps=1e-5)
        self.decay, self.shift = nn.Parameter(torch.zeros(H)), nn.Parameter(torch.zeros(H))
        self.filter = nn.Parameter(torch.zeros(self.conv * self.width)) if self.conv > 1 else None

    @torch.no_grad()
    def init_weights(self, std: float, residual_std: float) -> None:
        """A even in 1 … 16; softplus(d) even on a log scale in 0.001 … 0.1, so heads forget within 1 to 1000 tokens."""
        self.decay.uniform_(1.0, 16.0).log_()
        rate_H = self.shift.uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.shift.copy_(rate_H + torch.log(-torch.expm1(-rate_H)))
        if self.filter is not None:
            nn.init.uniform_(self.filter, -(self.conv**-0.5), self.conv**-0.5)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        B, T, _ = x_BTC.shape
        H, K, V = self.num_heads, self.key_dim, self.value_dim
        qkv_BTW, rates_BTR = self.qkv(x_BTC), self.rates(x_BTC).float()
        recurrence = fused_recurrence if fused_takes(qkv_BTW.device.type, qkv_BTW.dtype, T, K, V) else self.recurrence
        qkv_BTW = qkv_BTW.float()
        with torch.autocast(x_BTC.device.type, enabled=False):
            past, state_BHKV = self.past(qkv_BTW, context)
            maps = F.silu(self.convolved(past, qkv_BTW, context.mask_BTS)).split([H * K, H * K, H * V], dim=-1)
            q_BHTK, k_BHTK, v_BHTV = (x.view(B, T, H, -1).transpose(1, 2) for x in maps)
            forget_BTH, write_BTH = rates_BTR.chunk(2, dim=-1)
            log_keep_BHT = -(self.decay.float().exp() * F.softplus(forget_BTH + self.shift.float())).transpose(1, 2)
            write_BHT = write_BTH.sigmoid().transpose(1, 2)
            o_BHTV, last_BHKV = recurrence(l2_normalize(q_BHTK), l2_normalize(k_BHTK), v_BHTV, log_keep_BHT, write_BHT, state_BHKV, context.mask_BTS)
            if context.cache is not None:
                state_BHKV.copy_(last_BHKV)
            o_BTHV = F.rms_norm(o_BHTV, (V,), self.norm.weight.float(), self.norm.eps).transpose(1, 2)
        return self.out((o_BTHV.flatten(2) * F.silu(self.gate(x_BTC).float())).to(x_BTC.dtype))

    def past(self, qkv_BTW: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """What the tokens before left: the convolution's inputs [B,conv-1,W] and the state [B,H,K,V]; zeros before the first."""
        B = len(qkv_BTW)
        inputs, state_BHKV = qkv_BTW.new_zeros(B, self.conv - 1, self.width), qkv_BTW.new_zeros(B, self.num_heads, self.key_dim, self.value_dim)
        if context.cache is None:
            return inputs, state_BHKV
        cached, state_BHKV = context.cache.recurrent_state(inputs, state_BHKV)
        inputs = cached.clone()
        cached.copy_(torch.cat([inputs, qkv_BTW], 1)[:, qkv_BTW.shape[1] :])
        return inputs, state_BHKV

    def convolved(self, past: Tensor, x_BTW: Tensor, mask_BTS: Tensor | None) -> Tensor:
        """[B,T,W]: sum_j filter_j * x_{t-j} over the last `conv` tokens of t's document."""
        if self.filter is None:
            return x_BTW
        T, filters = x_BTW.shape[1], self.filter.float().view(self.conv, -1)
        known, total_BTW = torch.cat([past, x_BTW], 1), filters[0] * x_BTW
        for back in range(1, self.conv):
            moved_BTW = known[:, self.conv - 1 - back : self.conv - 1 - back + T]
            if mask_BTS is not None:
                moved_BTW = moved_BTW * sees(mask_BTS, back)[..., None]
            total_BTW = total_BTW + filters[back] * moved_BTW
        return total_BTW

    def recurrence(
        self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_keep_BHT: Tensor, write_BHT: Tensor, state_BHKV: Tensor, mask_BTS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """o [B,H,T,V] and the state after the last token."""
        T, outputs = q_BHTK.shape[2], []
        before = 0 if mask_BTS is None else mask_BTS.shape[2] - T
        whole = T - T % self.chunk
        for start, stop, c in ((0, whole, self.chunk), (whole, T, T - whole)):  # all chunks of full length at once, and the rest
            if start < stop:
                q, k, v, log_keep, write = (x[:, :, start:stop].unflatten(2, (-1, c)) for x in (q_BHTK, k_BHTK, v_BHTV, log_keep_BHT, write_BHT))
                seen_BTS = None if mask_BTS is None else mask_BTS[:, start:stop, : before + stop]
                o_BHTV, state_BHKV = chunks(q, k, v, log_keep, write, state_BHKV, seen_BTS)
                outputs.append(o_BHTV)
        return torch.cat(outputs, 2), state_BHKV

    def extra_flops(self, length: int) -> tuple[float, float]:
        K, V, full, causal = self.key_dim, self.value_dim, 0.0, 0.0
        for start in range(0, length, self.chunk):
            c = min(self.chunk, length - start)
            pairs, states = 2.0 * c**2 * (2 * K + V), 6.0 * c * K * V
            full, causal = full + pairs + states, causal + pairs / 2 + states
        return self.num_heads * full, self.num_heads * causal

    @property
    def cache_bytes_fixed(self) -> int:
        return 4 * (self.num_heads * self.key_dim * self.value_dim + (self.conv - 1) * self.width)


@constant_result
def fused_takes(kind: str, dtype: torch.dtype, length: int, key_dim: int, value_dim: int) -> bool:
    """Whether flash-linear-attention's kernels compute this: in bf16 on CUDA, where they are installed (feeb[fla]). They are tuned by
    a clock, and what they choose sums in an order of its own, so not in a deterministic run."""
    fits = length > 1 and 16 <= key_dim <= 256 and value_dim >= 16 and key_dim % 2 == value_dim % 2 == 0
    usable = kind == "cuda" and dtype == torch.bfloat16 and not torch.are_deterministic_algorithms_enabled()
    return fits and usable and all(importlib.util.find_spec(package) for package in ("fla", "triton"))


def fused_recurrence(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_keep_BHT: Tensor, write_BHT: Tensor, state_BHKV: Tensor, mask_BTS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`GatedDelta.recurrence` by flash-linear-attention: products in bf16, decay and state in fp32."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    if mask_BTS is not None:
        log_keep_BHT = log_keep_BHT.masked_fill(~sees(mask_BTS, 1, known=True)[:, None], FORGET)
    q, k, v = (x.transpose(1, 2).bfloat16() for x in (q_BHTK, k_BHTK, v_BHTV))
    rates = {"g": log_keep_BHT.transpose(1, 2), "beta": write_BHT.transpose(1, 2)}
    o_BTHV, last_BHKV = chunk_gated_delta_rule(q, k, v, **rates, scale=1.0, initial_state=state_BHKV.clone(), output_final_state=True)
    return o_BTHV.transpose(1, 2).float(), last_BHKV


def sees(mask_BTS: Tensor, back: int, known: bool = False) -> Tensor:
    """[B,T] bool: whether each query may see the token `back` places before its own. known: what stands for a token that is not there."""
    T, S = mask_BTS.shape[1:]
    t = torch.arange(T, device=mask_BTS.device)
    at = S - T + t - back
    if known:
        return mask_BTS[:, t, at.clamp(min=0)] | (at < 0)
    return mask_BTS[:, t, at.clamp(min=0)] & (at >= 0)


def chunks(
    q_BHNcK: Tensor, k_BHNcK: Tensor, v_BHNcV: Tensor, log_keep_BHNc: Tensor, write_BHNc: Tensor, state_BHKV: Tensor, mask_BTS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o [B,H,T,V] of N chunks of c tokens, and the state after them. mask_BTS: of these T tokens, S reaches up to the last of them.

    What does not need the state is computed for all chunks at once; U = U_0 - W S, of which U_0 and W are such.
    """
    N, c = q_BHNcK.shape[2:4]
    g_BHNc = log_keep_BHNc.cumsum(-1)
    pairs = torch.ones(c, c, dtype=torch.bool, device=q_BHNcK.device).tril()
    reach_BHNc = g_BHNc.exp()  # of the state to each token
    if mask_BTS is not None:
        pairs, sees_B1Nc = chunk_masks(mask_BTS, N)
        reach_BHNc = reach_BHNc * sees_B1Nc
    decay_BHNcc = (g_BHNc[..., :, None] - g_BHNc[..., None, :]).masked_fill(~pairs, -math.inf).exp()
    write, reach = write_BHNc[..., None], reach_BHNc[..., None]
    system = write * decay_BHNcc * (k_BHNcK @ k_BHNcK.mT)  # its diagonal is not read: ones stand there
    given = write * torch.cat([v_BHNcV, reach * k_BHNcK], -1)
    u_BHNcV, w_BHNcK = torch.linalg.solve_triangular(system, given, upper=False, unitriangular=True).split([v_BHNcV.shape[-1], k_BHNcK.shape[-1]], -1)
    stored_BHNKc = (decay_BHNcc[..., -1, :, None] * k_BHNcK).mT
    states, values = [], []
    for u, w, stored, kept in zip(*(x.unbind(2) for x in (u_BHNcV, w_BHNcK, stored_BHNKc, reach[..., -1:, :])), strict=True):
        states.append(state_BHKV)
        values.append(u - w @ state_BHKV)
        state_BHKV = kept * state_BHKV + stored @ values[-1]
    o_BHNcV = reach * (q_BHNcK @ torch.stack(states, 2)) + (decay_BHNcc * (q_BHNcK @ k_BHNcK.mT)) @ torch.stack(values, 2)
    return o_BHNcV.flatten(2, 3), state_BHKV


def chunk_masks(mask_BTS: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Of `number` chunks of c tokens: which pairs within each see each other [B,1,N,c,c], and which tokens see the last token before
    their chunk [B,1,N,c]; before the first token of all there is no state to see."""
    T, S = mask_BTS.shape[1:]
    rows_BNcS = mask_BTS.unflatten(1, (number, T // number))
    pairs_BNcc = rows_BNcS[..., S - T :].unflatten(3, (number, T // number)).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    n = torch.arange(number, device=mask_BTS.device)
    before_N = S - T - 1 + n * (T // number)
    sees_BNc = rows_BNcS[:, n, :, before_N.clamp(min=0)].transpose(0, 1)
    return pairs_BNcc[:, None], sees_BNc[:, None]
