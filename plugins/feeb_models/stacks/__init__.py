"""How blocks are stacked: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import StackSpec


class LoopedConfig(PartConfig):
    """Passes through `num_blocks` blocks A, B, …: num_layers of them, or loops times num_blocks."""

    num_blocks: int = Field(1, ge=1, description="blocks with weights of their own; a group that is repeated")
    loops: int | None = Field(None, ge=1, description="how often the group runs; default: until there were num_layers passes")
    order: Literal["cycle", "sequence", "cycle_reversed"] = Field(
        "cycle", description="cycle: ABAB; sequence: AABB; cycle_reversed: ABBA at the end (arXiv:2104.06022)"
    )
    inject: bool = Field(False, description="add the embedded tokens again before every pass but the first")
    pass_embedding: bool = Field(False, description="add a learned vector before every pass, one a pass")

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
    by_token: bool = Field(True, description="halting depends on the token's stream; false: one learned number a pass")
    ponder: float = Field(0.0, ge=0.0, description="adds ponder times the mean number of passes to the loss")


class EarlyExitConfig(LoopedConfig):
    threshold: float = Field(0.05, ge=0.0, description="a token stops once a pass changes its stream by less than this share of its norm")
    while_training: bool = Field(False, description="stop in training too; false: training runs all passes")


class PatchesConfig(PartConfig):
    """num_layers blocks run on patches; those before and after them, on every token, come on top."""

    before: int = Field(1, ge=1, description="blocks on every token before the ones on patches; they write what a patch holds into its boundary")
    after: int = Field(1, ge=0, description="blocks on every token after them")
    boundaries: Literal["stride", "words"] = Field(
        "stride", description="every `size` tokens; or, of tokenizer byte, after a word, once in `size` bytes at most"
    )
    size: int = Field(4, ge=1, description="tokens a patch; of words the fewest it is counted with")
    window: int = Field(0, ge=0, description="tokens that attention in blocks on every token sees, its own among them; 0: all")

    def check_tokenizer(self, name: str) -> list[str]:
        if self.boundaries == "words" and name != "byte":
            return [f"with boundaries words reads tokens as bytes, and the tokenizer is {name}; set tokenizer: byte, or boundaries: stride"]
        return []

    def all_layers(self, num_layers: int) -> int:
        return self.before + num_layers + self.after


def specs() -> Iterable[StackSpec]:
    yield StackSpec(
        "sequential",
        build="feeb_models.stacks.sequential:build_sequential",
        summary="Every layer has its own weights.",
        equation="r_{l+1} = B_l(r_l),  l = 0 … L − 1",
    )
    yield StackSpec(
        "looped",
        LoopedConfig,
        build="feeb_models.stacks.looped:build_looped",
        summary="One block, or a group of blocks, runs again and again with the same weights.",
        reference="arXiv:1807.03819; groups: arXiv:2405.16039",
        since="1.1",
        equation="r_{n+1} = B_{n mod num_blocks}(r_n),  n = 0 … L − 1      order cycle\ninject: B(r_n + r_0) for n > 0;   pass_embedding: B(r_n + p_n)",
    )
    yield StackSpec(
        "act",
        ActConfig,
        build="feeb_models.stacks.looped:build_act",
        summary="Looped, with the result a mean over passes by learned probabilities to halt.",
        reference="arXiv:1603.08983",
        since="1.1",
        equation="r = Σ_n p_n r_n,   p_n = λ_n Π_{j<n} (1 − λ_j),   λ_n = sigmoid(w·r_n + c),  of the last pass 1\n"
        "r_n, n = 1 … L: the streams after each pass, as in looped",
    )
    yield StackSpec(
        "early_exit",
        EarlyExitConfig,
        build="feeb_models.stacks.looped:build_early_exit",
        summary="Looped, and outside training a token stops when a pass hardly changes it.",
        since="1.1",
        equation="as looped; outside training token t keeps r_n,t from the first n on with |r_n,t − r_{n−1},t| < threshold |r_{n−1},t|",
    )
    yield StackSpec(
        "denseformer",
        build="feeb_models.stacks.skips:build_denseformer",
        summary="Each layer reads a learned weighted sum of what all layers before it made.",
        reference="arXiv:2402.02622",
        since="1.1",
        equation="x_i = B_i(y_{i−1}),   y_i = Σ_{j ≤ i} α_ij x_j,   x_0 = y_0 = r_0      α_ii = 1 and the others 0 at first",
    )
    yield StackSpec(
        "unet",
        build="feeb_models.stacks.skips:build_unet",
        summary="Layers of the second half also read, with learned weights, what their mirror in the first half read.",
        reference="https://github.com/KellerJordan/modded-nanogpt",
        since="1.1",
        equation="s_l = r_l,   r_{l+1} = B_l(r_l)  in the first half;   r_{l+1} = B_l(r_l + w_l s_{L−1−l})  in the second      w_l 0 at first",
    )
    yield StackSpec(
        "patches",
        PatchesConfig,
        build="feeb_models.stacks.patches:build_patches",
        summary="Most layers run on patches of tokens, one step for several bytes; a few before and after run on each.",
        reference="arXiv:2404.14408, arXiv:2412.09871",
        since="1.1",
        equation="x = before(r);   g = B_L ∘ … ∘ B_1 (x at boundaries);   r' = after(x_t + g_b − x_b),  b the last boundary ≤ t\n"
        "boundaries: every `size` tokens of a document, or the first end of a word in each `size` bytes",
    )
