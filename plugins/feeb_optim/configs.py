"""Options of the optimizers, schedules and rate rules; no torch here."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from feebcore import PartConfig
from feebcore.parts import Part, PartKey, default_part

Role = Literal["matrix", "embedding", "lm_head", "vector"]
Shape = Literal["linear", "cosine", "one_minus_sqrt"]


# --- optimizers ---------------------------------------------------------------------------------------------------


class RoleConfig(PartConfig):
    """Rates by role: a role without one of its own uses `lr`."""

    lr: float = Field(3e-3, ge=0, description="of weight matrices inside blocks, and of roles that name no other")
    embedding_lr: float | None = Field(None, ge=0)
    lm_head_lr: float | None = Field(None, ge=0)
    vector_lr: float | None = Field(None, ge=0, description="of norms, biases and scalars")
    weight_decay: float = Field(0.1, ge=0, description="decoupled: weights shrink by lr * weight_decay a step")
    decayed: list[Role] = Field(["matrix", "embedding", "lm_head"], description="roles that decay")

    def rate_of(self, role: str) -> float:
        own = getattr(self, f"{role}_lr", None)
        return self.lr if own is None else own

    def decay_of(self, role: str) -> float:
        return self.weight_decay if role in self.decayed else 0.0


class AdamWConfig(RoleConfig):
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)

    @model_validator(mode="after")
    def _in_range(self) -> AdamWConfig:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: {self.betas} must be at least 0 and below 1")
        return self


class AdamConfig(AdamWConfig):
    weight_decay: float = Field(0.0, ge=0, description="an L2 penalty: added to the gradient times the weights, and normalized with it")


class SgdConfig(RoleConfig):
    lr: float = Field(0.1, ge=0, description="of weight matrices inside blocks, and of roles that name no other")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0, description="an L2 penalty: added to the gradient, times the weights")

    @model_validator(mode="after")
    def _has_momentum(self) -> SgdConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: it needs momentum above 0")
        return self


class LionConfig(AdamWConfig):
    """An update is a sign, so rates are 3 to 10 times lower than AdamW's, and decay as much higher."""

    lr: float = Field(5e-4, ge=0, description="of weight matrices inside blocks, and of roles that name no other; every weight moves by it each step")
    betas: tuple[float, float] = Field((0.95, 0.98), description="of the average that gives the sign, and of the one that is kept")
    eps: float = Field(1e-8, gt=0, description="not used")
    weight_decay: float = Field(0.5, ge=0, description="decoupled: weights shrink by lr * weight_decay a step")


class AdafactorConfig(RoleConfig):
    lr: float = Field(0.02, ge=0, description="relative to the size of the weights; at step t at most 1 / sqrt(t)")
    beta2_decay: float = Field(0.8, gt=0, le=1, description="the average of squares forgets by t ** -beta2_decay at step t")
    clip_threshold: float = Field(1.0, ge=1, description="largest root mean square of an update before the rate")
    eps: float = Field(1e-8, gt=0, description="smallest root of a mean square")
    min_scale: float = Field(1e-3, ge=0, description="size that weights near zero are taken to have")
    weight_decay: float = Field(0.0, ge=0, description="decoupled: weights shrink by lr * weight_decay a step")


class MuonConfig(AdamWConfig):
    """Muon for block matrices at rate `lr`; AdamW for the other roles at theirs."""

    lr: float = Field(0.02, ge=0, description="of weight matrices inside blocks; an update has spectral norm of about 1")
    embedding_lr: float | None = Field(0.02, ge=0)
    lm_head_lr: float | None = Field(0.004, ge=0)
    vector_lr: float | None = Field(0.01, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    momentum_warmup: int = Field(0, ge=0, description="steps over which momentum rises from 0.85")
    nesterov: bool = True
    ns_steps: int = Field(5, ge=1, description="Newton-Schulz iterations")
    ns_precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of these iterations, whatever the run's precision; auto: bf16 where the hardware has it. In bf16 the order of sums shows sooner"
    )
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = Field(1e-10, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decayed: list[Role] = ["matrix"]


class NorMuonConfig(MuonConfig):
    beta2: float = Field(0.95, ge=0, lt=1, description="of the mean square of each row of the orthogonal update")


class SoapConfig(AdamWConfig):
    """SOAP for block matrices, AdamW for the other roles."""

    betas: tuple[float, float] = (0.95, 0.95)
    shampoo_beta: float = Field(0.95, ge=0, lt=1, description="of the averages of G G^T and G^T G")
    precondition_every: int = Field(10, ge=1, description="steps between updates of the eigenbases")
    max_precondition_dim: int = Field(4096, ge=1, description="a longer side of a matrix keeps its own basis")


class ScheduleFreeConfig(AdamWConfig):
    """AdamW whose weights for evaluation are an average over the run: use it with schedule: constant and a warmup."""

    betas: tuple[float, float] = Field((0.9, 0.95), description="share of the average in the weights that gradients are taken at; of the squares")
    weight_power: float = Field(2.0, ge=0, description="a step's weight in the average: its largest rate so far to this power,")
    step_power: float = Field(0.0, ge=0, description="times its number to this power")


class AdEMAMixConfig(AdamWConfig):
    betas: tuple[float, float] = (0.9, 0.999)
    slow_beta: float = Field(0.9999, ge=0, lt=1, description="of the second, slow average of gradients")
    alpha: float = Field(5.0, ge=0, description="weight of the slow average beside the fast one")
    warmup_steps: int = Field(0, ge=0, description="steps over which alpha and slow_beta rise to these values; take those of the run")


class GrokfastConfig(PartConfig):
    """Adds a slow average of the gradients to the gradients that `optimizer` sees."""

    optimizer: Annotated[Part, PartKey("optimizers")] = Field(default_part("adamw"), description="what follows the gradients")
    alpha: float = Field(0.98, ge=0, lt=1, description="of the average: share that stays each step")
    strength: float = Field(2.0, ge=0, description="weight of the average beside the gradient")


# --- schedules ----------------------------------------------------------------------------------------------------


class ConstantConfig(PartConfig):
    warmup_steps: int = Field(0, ge=0, description="steps over which the rate rises to its full value")
    warmup_fraction: float = Field(0.0, ge=0, le=1, description="the same as a share of the run; warmup_steps wins")

    def check_run(self, max_steps: int) -> list[str]:
        if self.warmup_steps > max_steps:
            return [f"warmup_steps: {self.warmup_steps} is more than max_steps {max_steps}, so the full rate is never reached"]
        return []

    def warmup(self, total_steps: int) -> int:
        return self.warmup_steps or round(self.warmup_fraction * total_steps)


class DecayConfig(ConstantConfig):
    final_fraction: float = Field(0.0, ge=0, le=1, description="share of the full rate that the decay ends at")


class WsdConfig(DecayConfig):
    decay_fraction: float = Field(0.2, ge=0, le=1, description="share of the run in which the rate decays")
    shape: Shape = "linear"

    def check_run(self, max_steps: int) -> list[str]:
        problems, warmup, decay = super().check_run(max_steps), self.warmup(max_steps), round(self.decay_fraction * max_steps)
        if not problems and warmup + decay > max_steps:
            problems.append(f"decay_fraction: {warmup} steps of warmup and {decay} of decay are more than max_steps {max_steps}; lower one of them")
        return problems


class WsdSConfig(ConstantConfig):
    ends: list[float] = Field([0.25, 0.5, 1.0], min_length=1, description="shares of the run at which a decay has ended; the last is 1")
    decay_fraction: float = Field(0.1, gt=0, le=1, description="length of a decay, as a share of the steps up to its end")
    final_fraction: float = Field(0.1, gt=0, le=1, description="share of the full rate that each decay ends at")
    shape: Literal["inverse", "linear", "cosine", "one_minus_sqrt"] = Field("inverse", description="inverse: 1 / rate rises on a straight line")

    @model_validator(mode="after")
    def _ascending(self) -> WsdSConfig:
        if self.ends[-1] != 1.0 or self.ends[0] <= 0 or any(a >= b for a, b in itertools.pairwise(self.ends)):
            raise ValueError(f"ends: {self.ends} must ascend, from above 0 to exactly 1")
        return self


class InverseSqrtConfig(ConstantConfig):
    timescale: int = Field(0, ge=0, description="steps after the warmup in which the rate falls to 0.71; 0: the warmup's length, at least 1")


class ExponentialConfig(ConstantConfig):
    final_fraction: float = Field(0.1, gt=0, le=1, description="share of the full rate that the decay ends at")


class PowerConfig(ConstantConfig):
    exponent: float = Field(0.51, ge=0, description="the rate goes as steps ** -exponent")
    onset_steps: int = Field(0, ge=0, description="step at which the fall begins; 0: the end of the warmup, at least 1")
    decay_fraction: float = Field(0.1, ge=0, le=1, description="share of the run in which the rate then falls to final_fraction of itself")
    final_fraction: float = Field(0.0, ge=0, le=1)
    shape: Shape = "linear"


class Piece(PartConfig):
    """Part of a sequence. Neither steps nor fraction: what the others leave."""

    schedule: Annotated[Part, PartKey("schedules")] = Field(default_part("constant"), description="it sees a run of this piece's length")
    steps: int = Field(0, ge=0, description="length")
    fraction: float = Field(0.0, ge=0, le=1, description="length as a share of the run; steps wins")
    scale: float = Field(1.0, gt=0, le=1, description="factor on the rates of this piece")

    def check_run(self, max_steps: int) -> list[str]:
        check = getattr(self.schedule.config, "check_run", None)
        return check(max_steps) if check else []


class SequentialConfig(PartConfig):
    pieces: list[Piece] = Field(
        [{"schedule": {"name": "constant", "warmup_fraction": 0.1}, "fraction": 0.5}, {"schedule": {"name": "cosine"}}],  # type: ignore[list-item]
        min_length=1,
        description="one after the other",
    )

    @model_validator(mode="after")
    def _fits(self) -> SequentialConfig:
        if sum(p.fraction for p in self.pieces if not p.steps) > 1 + 1e-9:
            raise ValueError("pieces: their fractions add up to more than 1")
        if sum(not (p.steps or p.fraction) for p in self.pieces) > 1:
            raise ValueError("pieces: only one may go without steps and fraction")
        return self

    def lengths(self, total_steps: int) -> list[int]:
        """Steps of each piece; cut off at `total_steps`, and the last fills what rounding leaves."""
        given, share = [], 0.0
        for piece in self.pieces:
            before, share = share, share + (0.0 if piece.steps else piece.fraction)
            given.append(piece.steps or round(share * total_steps) - round(before * total_steps))
        rest = max(0, total_steps - sum(given))
        free = [i for i, p in enumerate(self.pieces) if not (p.steps or p.fraction)]
        given[free[0] if free else -1] += rest
        return given

    def check_run(self, max_steps: int) -> list[str]:
        lengths = self.lengths(max_steps)
        found = [f"pieces.{i}.{text}" for i, (p, n) in enumerate(zip(self.pieces, lengths, strict=True)) for text in p.check_run(n)]
        if sum(lengths) > max_steps:
            found.append(f"pieces: they take {sum(lengths)} steps, more than max_steps {max_steps}")
        return found


# --- rate rules ---------------------------------------------------------------------------------------------------


class InverseWidthConfig(PartConfig):
    reference_width: int = Field(256, ge=1, description="d_model at which the recipe's rates were found")


class MupConfig(PartConfig):
    """References say where the recipe's rates were found; 0: that size is not looked at."""

    reference_width: int = Field(256, ge=1, description="d_model")
    reference_layers: int = Field(0, ge=0, description="num_layers")
    reference_batch_tokens: int = Field(0, ge=0, description="tokens of an optimizer step")
    width_exponent: float = Field(1.0, ge=0, le=1, description="of matrices and head: 1 for Adam-like optimizers, 0 for Muon")
    depth_exponent: float = Field(0.5, ge=0, le=1, description="of matrices: 0.5 where branches are scaled by 1 / sqrt(layers), 0 where by 1 / layers")
    keep_decay: bool = Field(True, description="raise weight_decay as the rate falls, so that weights shrink by as much a step")


class NanochatConfig(PartConfig):
    """References say where the recipe's rates were found; 0: that size is not looked at."""

    reference_width: int = Field(768, ge=1, description="d_model")
    reference_batch_tokens: int = Field(0, ge=0, description="tokens of an optimizer step")
    reference_steps: int = Field(0, ge=0, description="with reference_batch_tokens, the tokens of the run")
