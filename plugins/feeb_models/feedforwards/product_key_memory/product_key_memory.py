"""Memories: a token reads a few of very many small values, found by product keys, so that size and cost come apart.

A key of value (i, j) is the pair of sub-keys i and j, so q . k = q1 . k1_i + q2 . k2_j, and the top_k of num_keys^2 keys are
among the top_k x top_k pairs of the best sub-keys: exact, for the price of 2 num_keys products. Scores are in fp32.

Queries are brought to root mean square 1 where the papers use a batch norm, which would let rows and positions see each other.
Values are embedding tables and have that role for optimizers. FLOPs are those of keys read and values summed, whatever the size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.feedforwards.dense.dense import gelu
from feeb_models.feedforwards.product_key_memory import PeerConfig, ProductKeyConfig, UltraMemConfig
from feeb_models.norms.rmsnorm import RMSNormConfig
from feeb_models.norms.rmsnorm.rmsnorm import RMSNorm
from feebcore.model.context import ForwardContext
from feebcore.model.parts import FeedforwardPart, ModelPart, ResidualLinear
from feebcore.protocols import BuildContext


class ProductKeys(ModelPart):
    """Finds the best k of n^2 keys for each of H heads. With M cores a key has M scores and is found by their sum."""

    def __init__(self, config: ProductKeyConfig, d_model: int, cores: int = 1) -> None:
        super().__init__()
        self.heads, self.num_keys, self.top_k, self.key_dim = config.heads, config.num_keys, config.top_k, config.key_dim
        self.cores = cores
        self.query = nn.Linear(d_model, config.heads * config.key_dim, bias=False)
        self.norm = RMSNorm(RMSNormConfig(learnable=False), BuildContext(d_model=config.key_dim))
        self.keys = nn.Parameter(torch.empty(config.heads, 2, config.num_keys * cores, config.key_dim // 2))

    def init_weights(self, std: float, residual_std: float) -> None:
        """Scores start with variance 1, whatever the model's std: they are compared, not added to the stream."""
        nn.init.normal_(self.keys, std=self.key_dim**-0.5)

    def forward(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """index [B,T,H,k] int64 of the keys found, best first, and their scores [B,T,H,k,M] fp32."""
        B, T, _ = x_BTC.shape
        H, n, k, M = self.heads, self.num_keys, self.top_k, self.cores
        query_BTHD = self.norm(self.query(x_BTC).float().view(B, T, H, self.key_dim))
        with torch.autocast(x_BTC.device.type, enabled=False):
            query_HZND = query_BTHD.view(B * T, H, 2, -1).permute(1, 2, 0, 3)  # Z: the two halves
            scores_HZNK = query_HZND @ self.keys.float().mT
        first_NHKM, second_NHKM = scores_HZNK.view(H, 2, B * T, n, M).permute(1, 2, 0, 3, 4)
        with torch.no_grad():
            best_a, a_NHk = first_NHKM.sum(-1).topk(k, dim=-1)
            best_b, b_NHk = second_NHKM.sum(-1).topk(k, dim=-1)
            pair_NHk = (best_a[..., :, None] + best_b[..., None, :]).flatten(-2).topk(k, dim=-1).indices
            a_NHk, b_NHk = a_NHk.gather(-1, pair_NHk // k), b_NHk.gather(-1, pair_NHk % k)
        scores_NHkM = sum(s_NHKM.gather(2, i_NHk[..., None].expand(-1, -1, -1, M)) for s_NHKM, i_NHk in ((first_NHKM, a_NHk), (second_NHKM, b_NHk)))
        return (a_NHk * n + b_NHk).view(B, T, H, k), scores_NHkM.view(B, T, H, k, M)  # type: ignore[union-attr]

    def extra_flops(self, length: int) -> tuple[float, float]:
        return (2.0 * length * self.keys.numel(),) * 2


class ProductKeyMemory(FeedforwardPart):
    """sum_h sum_i softmax(scores_h)_i value_i over the keys found (arXiv:1907.05242); heads share the values."""

    def __init__(self, config: ProductKeyConfig, context: BuildContext) -> None:
        super().__init__()
        self.keys = ProductKeys(config, context.d_model)
        self.values = nn.Embedding(config.num_keys**2, context.d_model)
        self.reads = config.heads * config.top_k

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        index_BTHk, scores_BTHk1 = self.keys(x_BTC)
        weights_BT1J = scores_BTHk1[..., 0].softmax(-1).flatten(2)[:, :, None]
        values_BTJC = self.values(index_BTHk.flatten(2))
        return (weights_BT1J.to(values_BTJC.dtype) @ values_BTJC)[:, :, 0].to(x_BTC.dtype)

    def extra_flops(self, length: int) -> tuple[float, float]:
        return (2.0 * length * self.reads * self.values.embedding_dim,) * 2


class Peer(FeedforwardPart):
    """Parameter-efficient expert retrieval (arXiv:2407.04153): num_keys^2 experts of one hidden unit each,

    y = sum_h sum_i softmax(scores_h)_i gelu(u_i . x) v_i    over the experts found.
    """

    def __init__(self, config: PeerConfig, context: BuildContext) -> None:
        super().__init__()
        self.keys = ProductKeys(config, context.d_model)
        self.up = nn.Embedding(config.num_keys**2, context.d_model)
        self.down = nn.Embedding(config.num_keys**2, context.d_model)
        self.reads = config.heads * config.top_k

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        index_BTHk, scores_BTHk1 = self.keys(x_BTC)
        index_BTJ, gates_BTJ = index_BTHk.flatten(2), scores_BTHk1[..., 0].softmax(-1).flatten(2)
        up_BTJC, down_BTJC = self.up(index_BTJ), self.down(index_BTJ)
        hidden_BTJ = (up_BTJC @ x_BTC.to(up_BTJC.dtype)[..., None])[..., 0]
        active_BT1J = (gates_BTJ * gelu(hidden_BTJ))[:, :, None]
        return (active_BT1J.to(down_BTJC.dtype) @ down_BTJC)[:, :, 0].to(x_BTC.dtype)

    def extra_flops(self, length: int) -> tuple[float, float]:
        return (4.0 * length * self.reads * self.up.embedding_dim,) * 2


class UltraMem(FeedforwardPart):
    """Two of the ideas of UltraMem (arXiv:2411.12364) on product keys. Its Tucker-decomposed scores, its memories that skip
    over layers and its penalty on singular values are not here.

    Multi-core scoring: a value's M segments are weighed with a score each, its key is found by their sum; no softmax.
    Implicit value expansion: the n^2 keys are E blocks that share n^2 / E values, each block with a projection of its own:

        y = sum_e W_e sum_{i found in block e} score_i * value_{i mod n^2/E}
    """

    def __init__(self, config: UltraMemConfig, context: BuildContext) -> None:
        super().__init__()
        self.cores, self.expansion = config.cores, config.expansion
        self.reads = config.heads * config.top_k
        self.num_values = config.num_keys**2 // config.expansion
        width = config.width_of_value(context.d_model)
        self.keys = ProductKeys(config, context.d_model, config.cores)
        self.values = nn.Embedding(self.num_values, width)
        self.out = ResidualLinear(config.expansion * width, context.d_model, bias=False)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        B, T, _ = x_BTC.shape
        index_BTHk, scores_BTHkM = self.keys(x_BTC)
        index_BTJ, scores_BTMJ = index_BTHk.flatten(2), scores_BTHkM.flatten(2, 3).transpose(2, 3)
        values_BTMJS = self.values(index_BTJ % self.num_values).view(B, T, self.reads, self.cores, -1).transpose(2, 3)
        in_block_BTEJ = F.one_hot(index_BTJ // self.num_values, self.expansion).transpose(2, 3)
        weights_BTMEJ = scores_BTMJ[:, :, :, None] * in_block_BTEJ[:, :, None]
        read_BTMES = weights_BTMEJ.to(values_BTMJS.dtype) @ values_BTMJS
        return self.out(read_BTMES.transpose(2, 3).reshape(B, T, -1).to(x_BTC.dtype))

    def extra_flops(self, length: int) -> tuple[float, float]:
        return (2.0 * length * self.expansion * self.reads * self.values.embedding_dim,) * 2
