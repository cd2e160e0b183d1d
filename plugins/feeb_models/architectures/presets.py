"""What architectures that are choices of the transformer's parts have in common. Sizes stay small unless they are given.

What a recipe leaves out of a part's options keeps the preset's value: `attention: {num_kv_heads: 4}` of `qwen3` still
normalizes queries and keys.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from feeb_models.architectures.transformer import TransformerConfig

NARROW_HEAD, WIDE_HEAD, DEEP = 64, 128, 12


class PresetConfig(TransformerConfig):
    """A transformer whose sizes may be set by one number."""

    inert: ClassVar[tuple[str, ...]] = ("depth", "width_per_layer")  # sizes that are given win
    depth: int | None = Field(
        None,
        ge=1,
        description="sets num_layers = depth, d_model = width_per_layer * depth, rounded up to whole heads, and num_heads (head size 64; 128 from depth 12), "
        "and num_kv_heads for GQA presets, unless given",
    )
    width_per_layer: int = Field(64, ge=2, description="with depth: d_model / num_layers; below 64, heads are as narrow")

    @model_validator(mode="before")
    @classmethod
    def _sizes_from_depth(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        depth, width = (data.get(key, cls.model_fields[key].default) for key in ("depth", "width_per_layer"))
        if not (isinstance(depth, int) and isinstance(width, int) and depth >= 1 and width >= 2):
            return data
        sizes: dict[str, Any] = {**depth_scaled_sizes(depth, width), **data}
        attention = cls.model_fields["attention"].default
        if "attention" not in data and attention["name"] == "gqa" and isinstance(sizes["num_heads"], int):
            sizes["attention"] = {**attention, "num_kv_heads": grouped(sizes["num_heads"])}
        return sizes


def depth_scaled_sizes(depth: int, width_per_layer: int = 64) -> dict[str, int]:
    """num_layers, d_model and num_heads of one number: width grows with depth, as in nanochat.

    Example: 4 -> 4 layers, d_model 256, 4 heads of 64; 20 -> 20 layers, d_model 1280, 10 heads of 128.
    """
    head_dim = width_per_layer if width_per_layer < NARROW_HEAD else WIDE_HEAD if depth >= DEEP else NARROW_HEAD
    num_heads = -(-width_per_layer * depth // head_dim)
    return {"num_layers": depth, "d_model": num_heads * head_dim, "num_heads": num_heads}


def grouped(num_heads: int) -> int:
    """Key/value heads for so many query heads: groups as small as can be, but of at least two. 4 -> 2, 9 -> 3, 7 -> 1."""
    return next((num_heads // size for size in range(2, num_heads + 1) if num_heads % size == 0), 1)
