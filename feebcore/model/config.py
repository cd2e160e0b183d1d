"""What a transformer is made of, and the sizes that must fit. Loads no torch.

The options of a part of a model derive from ModelPartConfig where they are checked against the model's sizes or the tokenizer, those
of a stack from StackConfig where it has more layers than num_layers. All of it is called while the recipe loads.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from feebcore.config import PartConfig
from feebcore.parts import Part, PartKey, parts_in

Attention = Annotated[Part, PartKey("attentions"), Field(description="token mixing")]
Feedforward = Annotated[Part, PartKey("feedforwards"), Field(description="channel mixing")]
Norm = Annotated[Part, PartKey("norms"), Field(description="normalization, wherever the model has one")]
Position = Annotated[Part, PartKey("positions"), Field(description="position encoding")]
Block = Annotated[Part, PartKey("blocks"), Field(description="residual block: how attention, feedforward and norms are connected")]
Stack = Annotated[Part, PartKey("stacks"), Field(description="how blocks are stacked")]
Embedding = Annotated[Part, PartKey("embeddings"), Field(description="token embedding")]
LMHead = Annotated[Part, PartKey("lm_heads"), Field(description="output (LM) head")]
Initialization = Annotated[Part, PartKey("initializations"), Field(description="initial weights")]
"""Keys of an architecture that hold a part: `attention: Attention = default_part("mha")`."""


class ModelPartConfig(PartConfig):
    """Options of a part of a model."""

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        """Raises ValueError, saying what to change, when the part cannot stand in a model of these sizes."""

    def check_tokenizer(self, name: str) -> list[str]:
        """What is wrong with the recipe's tokenizer, of this name, for the part; nothing by default."""
        return []


class StackConfig(ModelPartConfig):
    """Options of a stack."""

    def all_layers(self, num_layers: int) -> int:
        """How many layers the stack has in all, for a model with num_layers."""
        return num_layers


class TransformerConfig(PartConfig):
    """Sizes and parts. A plugin's architecture subclasses this and gives the parts their defaults."""

    num_layers: int = Field(4, ge=1, description="layers of the stack")
    d_model: int = Field(256, ge=1, description="width of the residual stream")
    num_heads: int = Field(4, ge=1, description="query heads per attention")
    head_dim: int | None = Field(None, ge=1, description="width of one head; default d_model / num_heads")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the embedding and on the results of attention and feedforward")
    attention_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the attention weights; not in recurrences such as gated_delta")
    attention: Attention
    feedforward: Feedforward
    norm: Norm
    position: Position
    block: Block
    stack: Stack
    embedding: Embedding
    lm_head: LMHead
    initialization: Initialization

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
            if isinstance(part.config, ModelPartConfig):
                part.config.check_shape(d_model=self.d_model, num_heads=self.num_heads, head_dim=self.width_of_head)
        return self
