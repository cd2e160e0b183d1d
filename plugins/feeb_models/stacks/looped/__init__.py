"""Blocks that run several times: looped transformers, adaptive computation time, early exit."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

import feebcore as feeb
from feebcore.model.config import StackConfig


class LoopedConfig(StackConfig):
    """Passes through `num_blocks` blocks A, B, …: num_layers of them, or loops times num_blocks."""

    inert: ClassVar[tuple[str, ...]] = ("order",)  # with one block twice
    num_blocks: int = Field(1, ge=1, description="number of distinct blocks in the group that is repeated")
    loops: int | None = Field(None, ge=1, description="number of times the group runs; default: num_layers passes in total")
    order: Literal["cycle", "sequence", "cycle_reversed"] = Field(
        "cycle", description="cycle: ABAB; sequence: AABB; cycle_reversed: ABBA at the end (arXiv:2104.06022)"
    )
    inject: bool = Field(False, description="add the embedded tokens again before every pass but the first")
    pass_embedding: bool = Field(False, description="add a learned vector before every pass, one per pass")

    def passes(self, num_layers: int) -> list[int]:
        """Which block each pass runs through. Raises ValueError when there are more blocks than passes."""
        number = self.loops * self.num_blocks if self.loops else num_layers
        if self.num_blocks > number:
            raise ValueError(f"stack.num_blocks {self.num_blocks} is more than num_layers {number}; set num_blocks to {number} or less, or give loops")
        if self.order == "sequence":
            return [i * self.num_blocks // number for i in range(number)]
        order = [i % self.num_blocks for i in range(number)]
        if self.order == "cycle_reversed":
            last = min(self.num_blocks, number - self.num_blocks)
            order[number - last :] = [self.num_blocks - 1 - i for i in range(last)]
        return order


class ActConfig(LoopedConfig):
    by_token: bool = Field(True, description="halting depends on the token's stream; false: one learned number per pass")
    ponder: float = Field(0.0, ge=0.0, description="adds ponder times the mean number of passes to the loss")


class EarlyExitConfig(LoopedConfig):
    inert = ("order", "threshold", "while_training")  # of two passes, no token has settled after the first
    threshold: float = Field(0.05, ge=0.0, description="a token exits once a loop changes its hidden state by less than this fraction of its norm")
    while_training: bool = Field(False, description="exit early in training too; false: training runs all passes")


LOOPED = f"{__name__}.looped"

PARTS = (
    feeb.StackSpec(
        "looped",
        LoopedConfig,
        build=f"{LOOPED}:Looped",
        summary="Looped transformer: one block, or a group of blocks, runs again and again with the same weights.",
        reference="arXiv:1807.03819; groups: arXiv:2405.16039",
        since="1.1",
        equation="r_{n+1} = B_{n mod num_blocks}(r_n),  n = 0 … L − 1      order cycle\ninject: B(r_n + r_0) for n > 0;   pass_embedding: B(r_n + p_n)",
    ),
    feeb.StackSpec(
        "act",
        ActConfig,
        build=f"{LOOPED}:AdaptiveComputationTime",
        summary="Adaptive computation time (ACT) on a looped transformer: output averaged over loops by learned halting probabilities.",
        reference="arXiv:1603.08983",
        since="1.1",
        equation="r = Σ_n p_n r_n,   p_n = λ_n Π_{j<n} (1 − λ_j),   λ_n = sigmoid(w·r_n + c),  of the last pass 1\n"
        "r_n, n = 1 … L: the streams after each pass, as in looped",
    ),
    feeb.StackSpec(
        "early_exit",
        EarlyExitConfig,
        build=f"{LOOPED}:EarlyExit",
        summary="Looped transformer with early exit at inference: a token exits when a loop changes its hidden state by less than a threshold.",
        since="1.1",
        equation="as looped; outside training token t keeps r_n,t from the first n on with |r_n,t − r_{n−1},t| < threshold |r_{n−1},t|",
    ),
)
