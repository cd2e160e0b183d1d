"""Most layers run on patches of tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb
from feebcore.model.config import StackConfig


class PatchesConfig(StackConfig):
    """num_layers blocks run on patches; those before and after them, on every token, come on top."""

    before: int = Field(1, ge=1, description="blocks on every token before the ones on patches; they write what a patch holds into its boundary")
    after: int = Field(1, ge=0, description="blocks on every token after them")
    boundaries: Literal["stride", "words"] = Field(
        "stride", description="every `size` tokens; or, of tokenizer byte, after a word, at most once in `size` bytes"
    )
    size: int = Field(4, ge=1, description="tokens per patch; with boundaries words, the fewest")
    window: int = Field(0, ge=0, description="tokens that attention in blocks on every token sees, its own among them; 0: all")

    def check_tokenizer(self, name: str) -> list[str]:
        if self.boundaries == "words" and name != "byte":
            return [f"with boundaries words reads tokens as bytes, and the tokenizer is {name}; set tokenizer: byte, or boundaries: stride"]
        return []

    def all_layers(self, num_layers: int) -> int:
        return self.before + num_layers + self.after


PART = feeb.StackSpec(
    "patches",
    PatchesConfig,
    build=f"{__name__}.patches:Patches",
    summary="Byte-patch transformer (SpaceByte, BLT): a few layers run on every byte, most layers run once per patch.",
    reference="arXiv:2404.14408, arXiv:2412.09871",
    since="1.1",
    equation="x = before(r);   g = B_L ∘ … ∘ B_1 (x at boundaries);   r' = after(x_t + g_b − x_b),  b the last boundary ≤ t\n"
    "boundaries: every `size` tokens of a document, or the first end of a word in each `size` bytes",
)
