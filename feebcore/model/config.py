"""What a transformer is made of, and the sizes that must fit. Loads no torch.

Part configs may have `check_shape(d_model, num_heads, head_dim)`: it raises ValueError, saying what to change, when
the part cannot stand in a model of these sizes. It is called while the recipe loads. `check_tokenizer(name) -> list[str]`, likewise,
says what is wrong with the recipe's tokenizer.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from feebcore.config import PartConfig
from feebcore.parts import Part, PartKey, parts_in


class TransformerConfig(PartConfig):
    """Sizes and parts. A plugin's architecture subclasses this and gives the parts their defaults."""

    num_layers: int = Field(4, ge=1)
    d_model: int = Field(256, ge=1)
    num_heads: int = Field(4, ge=1)
    head_dim: int | None = Field(None, ge=1, description="width of one head; default d_model / num_heads")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="on the embedding and on what attention and feedforward add to the stream")
    attention_dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="on the weights with which attention takes its mean of values; recurrences, as gated_delta, have none"
    )
    attention: Annotated[Part, PartKey("attentions")]
    feedforward: Annotated[Part, PartKey("feedforwards")]
    norm: Annotated[Part, PartKey("norms")]
    position: Annotated[Part, PartKey("positions")]
    block: Annotated[Part, PartKey("blocks")]
    stack: Annotated[Part, PartKey("stacks")]
    embedding: Annotated[Part, PartKey("embeddings")]
    lm_head: Annotated[Part, PartKey("lm_heads")]
    initialization: Annotated[Part, PartKey("initializations")]

    @property
    def width_of_head(self) -> int:
        return self.head_dim or self.d_model // self.num_heads

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.head_dim is None and self.d_model % self.num_heads:
            near = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            best = min(near, key=lambda n: (abs(n - self.num_heads), n))
            raise ValueError(
                f"d_model {self.d_model} does not divide into num_heads {self.num_heads}; "
                f"set num_heads to {best}, d_model to {-(-self.d_model // self.num_heads) * self.num_heads}, or head_dim explicitly"
            )
        for part in parts_in(self):
            check = getattr(part.config, "check_shape", None)
            if check is not None:
                check(d_model=self.d_model, num_heads=self.num_heads, head_dim=self.width_of_head)
        return self
