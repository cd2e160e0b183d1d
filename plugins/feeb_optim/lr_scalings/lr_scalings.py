"""Learning rates tuned at one size, used at another. Below, w, L, B and D are width, layers, batch tokens and tokens of the
run, each divided by its reference."""

from __future__ import annotations

from feeb_optim.lr_scalings import InverseWidthConfig, MupLRConfig, NanochatConfig
from feebcore.train.lr_scaling import LRScale, LRScaling, TrainShape

ROLES = ("matrix", "embedding", "lm_head", "vector")


class InverseWidth(LRScaling):
    """Adam's learning rate for matrices with `width` inputs goes as 1 / width (arXiv:2203.03466, Table 3); other roles keep theirs."""

    config: InverseWidthConfig

    def __call__(self, shape: TrainShape) -> LRScale:
        factor = self.config.reference_width / shape.d_model if shape.d_model else 1.0
        return LRScale({"matrix": factor, "lm_head": factor})


class MupLR(LRScaling):
    """The learning rates of maximal update parametrization for Adam-like optimizers; no initialization and no multipliers.

        matrix: w^-width_exponent L^-depth_exponent sqrt(B);  head: w^-width_exponent sqrt(B);  embedding, vector: sqrt(B)
        weight decay of matrix and head, with keep_decay: one over the factor of width and depth

    Width: arXiv:2203.03466, Table 3. Depth: with residual branches scaled by 1 / sqrt(layers), 1 / sqrt(L)
    (arXiv:2310.02244, Table 1); with 1 / layers, depth_exponent 0 (arXiv:2505.01618, alpha = 1), which is also where weight
    decay goes as one over the factor. This cannot scale the branches: the model must. sqrt(B) is Adam's
    (arXiv:2205.10287). For Muon, width_exponent 0: its update has the right size at any width.
    """

    config: MupLRConfig

    def __call__(self, shape: TrainShape) -> LRScale:
        config = self.config
        width = ratio(shape.d_model, config.reference_width) ** -config.width_exponent
        depth = ratio(shape.num_layers, config.reference_layers) ** -config.depth_exponent
        batch = ratio(shape.batch_tokens, config.reference_batch_tokens) ** 0.5
        size = {"matrix": width * depth, "lm_head": width}
        decay = {role: 1 / factor for role, factor in size.items()} if config.keep_decay else {}
        return LRScale({role: batch * size.get(role, 1.0) for role in ROLES}, decay)


class Nanochat(LRScaling):
    """What nanochat does for Muon and AdamW (https://github.com/karpathy/nanochat, scripts/base_train.py, 2026).

        embedding, head: sqrt(B / w);  vector, matrix (Muon): sqrt(B);  weight decay of matrix: sqrt(B) / D

    There the depth sets the width (64 a layer) and the tokens, so depth needs no factor of its own. sqrt(B) / D keeps
    the time over which weights forget, 1 / (lr decay) steps, the same share of the run (arXiv:2405.13698).
    """

    config: NanochatConfig

    def __call__(self, shape: TrainShape) -> LRScale:
        config = self.config
        width = ratio(shape.d_model, config.reference_width) ** -0.5
        batch = ratio(shape.batch_tokens, config.reference_batch_tokens) ** 0.5
        tokens = ratio(shape.batch_tokens * shape.steps, config.reference_batch_tokens * config.reference_steps)
        rates = {role: batch * (width if role in ("embedding", "lm_head") else 1.0) for role in ROLES}
        return LRScale(rates, {"matrix": batch / tokens} if config.reference_steps else {})


def ratio(size: int, reference: int) -> float:
    """1 where either is not known."""
    return size / reference if size and reference else 1.0
