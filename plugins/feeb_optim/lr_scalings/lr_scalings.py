"""Learning rates tuned at one size, used at another. In formulas, w, L, B and D are width, layers, batch tokens and tokens of the
run, each divided by its reference, unless a formula is one with units.

Every rule is a factor on what the recipe says, which holds at the reference. So rates differ by role as in the recipe, and what
multiplies them (a sweep's probe, `feeb compare --tune-lr`) comes on top. A published rate itself: take the reference at which it is known."""

from __future__ import annotations

from feeb_optim.lr_scalings import DeepSeekConfig, HorizonConfig, InverseWidthConfig, MupLRConfig, NanochatConfig, PorianConfig, StepLawConfig
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


class Horizon(LRScaling):
    """What Marin does for its dense models (https://github.com/marin-community/marin, docs/recipes/add_scaling_heuristic.md, 2026).

        all roles: sqrt(B) D^-token_exponent;  beta2: beta2^B;  eps: sqrt(D / B)

    A longer run wants a lower rate, a larger batch a higher one. beta2^B forgets half of a squared gradient after the same number
    of tokens at any batch size; as there it stays between 0.9 and 0.9999. Weight decay is not scaled: there the optimizer has none. There the
    matrices' exponent is 0.3 and that of the roles under plain Adam 0.5; here it is one, an option. Optimizers without Adam's
    average of squared gradients (lion, sgd, adafactor, Muon's matrices) get the learning rates only.
    """

    config: HorizonConfig

    def __call__(self, shape: TrainShape) -> LRScale:
        batch = ratio(shape.batch_tokens, self.config.reference_batch_tokens)
        tokens = ratio(shape.tokens, self.config.reference_tokens)
        rate = batch**0.5 * tokens**-self.config.token_exponent
        return LRScale(dict.fromkeys(ROLES, rate), beta2_power=batch, eps=(tokens / batch) ** 0.5)


class Porian(LRScaling):
    """Porian et al. 2024 (arXiv:2406.19146, Section 4), as https://github.com/allenai/OLMo-core, model_ladder, has it:

        lr = 0.0047 (N / 108e6)^(-1/3);  batch = 160 2048 (N / 108e6)^(2/3) tokens;  N: parameters of blocks and output head

    for AdamW, about 20 tokens a parameter and a constant rate after the warmup (OLMo halves it under WSD). Sets the learning rates of all
    roles. Their beta2, 0.95, was too low for batches below about 2^19 tokens: 0.99 there; that is left to the recipe.
    """

    config: PorianConfig

    def __call__(self, shape: TrainShape) -> LRScale:
        size = shape.block_parameters + shape.head_parameters
        factor = ratio(size, self.config.reference_parameters) ** (-1 / 3)
        return LRScale(dict.fromkeys(ROLES, factor), batch_tokens=160 * 2048 * (size / 108e6) ** (2 / 3) if size else None)


class DeepSeek(LRScaling):
    """DeepSeek LLM (arXiv:2401.02954, Section 3.1, Formula 1):

        lr = 0.3118 C^-0.1250;  batch = 0.2920 C^0.3271 tokens;  C = M D, M = 72 L d^2 + 12 L d T FLOPs a token

    for AdamW at the best model size of each C: M counts attention in full and leaves out embedding and output head. Sets the learning
    rates of all roles.
    """

    config: DeepSeekConfig

    def __call__(self, shape: TrainShape) -> LRScale:
        flops = shape.block_flops * shape.tokens
        factor = ratio(flops, self.config.reference_flops) ** -0.125
        return LRScale(dict.fromkeys(ROLES, factor), batch_tokens=0.292 * flops**0.3271 if flops else None)


class StepLaw(LRScaling):
    """Step Law (Li et al. 2025, arXiv:2503.04715, Equation 1):

        lr = 1.79 N^-0.713 D^0.307;  batch = 0.58 D^0.571 tokens;  N: parameters without embedding and output head

    for AdamW and a cosine to 1e-5. The rate grows with D because the batch is meant to grow with it: at a fixed batch size take
    horizon. Sets the learning rates of all roles.
    """

    config: StepLawConfig

    def __call__(self, shape: TrainShape) -> LRScale:
        size = ratio(shape.block_parameters, self.config.reference_parameters)
        tokens = ratio(shape.tokens, self.config.reference_tokens)
        return LRScale(dict.fromkeys(ROLES, size**-0.713 * tokens**0.307), batch_tokens=0.58 * shape.tokens**0.571 if shape.tokens else None)


def ratio(size: float, reference: float) -> float:
    """1 where either is not known."""
    return size / reference if size and reference else 1.0
