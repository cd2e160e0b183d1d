"""GGUF files of the Llama and Qwen families, by way of the names that families.py knows.

llama.cpp turns neighboring pairs (x_2i, x_{2i+1}) where Llama's own code turns halves (x_i, x_{i+D/2}); its converter reorders
the rows of q and k of architecture `llama` for that, and here they are put back. Qwen files are stored as they were.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from feeb_interchange.gguf.gguf_file import GgufFile
from feeb_interchange.huggingface.huggingface import import_model
from feeb_interchange.imported.tokenizer import write_codec_folder
from feebcore.errors import DataError

if TYPE_CHECKING:
    from feeb_interchange.options import ImportConfig
    from feebcore.protocols import BuildContext

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types

LLAMA3_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def build_importer(config: ImportConfig, context: BuildContext) -> Callable[[Path, Path], None]:
    """`run(source, folder)`: the GGUF file `source` as the feeb model folder `folder`, weights in fp32."""

    def run(source: Path, folder: Path) -> None:
        file = GgufFile(Path(source))
        described = describe(file)
        stored = {theirs: name for name in file.tensors if (theirs := hugging_face_name(name)) is not None}
        unknown = sorted(set(file.tensors) - set(stored.values()))
        if unknown:
            raise DataError(f"{source}: {len(unknown)} tensors that cannot be used, as {unknown[0]!r}; the model would not be the same without them")

        def take(name: str) -> Tensor:
            tensor = torch.from_numpy(file.read(stored[name]))
            if described["gguf_pairs"] and (".q_proj." in name or ".k_proj." in name):
                return halves_from_pairs(tensor, described["head_dim"])
            return tensor

        with tempfile.TemporaryDirectory() as temporary:
            codec: Path | None = Path(temporary) / "tokenizer"
            text, bos, eos = tokenizer_json(file.metadata)
            if text:
                write_codec_folder(Path(temporary) / "tokenizer", text, bos, eos, described["vocab_size"])
            else:
                warnings.warn(f"{source}: its tokenizer ({bos}) cannot be read, so the model has none: it scores and trains on ids only", stacklevel=2)
                codec = None
            import_model(described, take, set(stored), str(source), config.seq_len, folder, codec)

    return run


def describe(file: GgufFile) -> dict[str, Any]:
    """What a config.json of the same model says; `gguf_pairs`: whether rows of q and k are in llama.cpp's order."""
    meta, kind = file.metadata, file.metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise DataError(f"{file.path} holds architecture {kind!r}; GGUF files of {', '.join(ARCHITECTURES)} can be imported")
    try:
        get: Callable[..., Any] = lambda key, *default: meta.get(f"{kind}.{key}", *default) if default else meta[f"{kind}.{key}"]  # noqa: E731
        width, heads = get("embedding_length"), get("attention.head_count")
        head_dim = get("attention.key_length", None) or get("rope.dimension_count", None) or width // heads
        rotated = get("rope.dimension_count", None) or head_dim
        described = {
            "model_type": kind,
            "vocab_size": file.tensors["token_embd.weight"].shape[0],
            "max_position_embeddings": get("context_length"),
            "hidden_size": width,
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": _nearest_decimal(get("attention.layer_norm_rms_epsilon")),
            "rope_theta": _nearest_decimal(get("rope.freq_base", 10_000.0)),
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "partial_rotary_factor": rotated / head_dim,
            "gguf_pairs": kind == "llama",
        }
    except KeyError as error:
        raise DataError(f"{file.path}: the file has no {error}") from None
    scaling = get("rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        described["rope_scaling"] = {"rope_type": scaling if scaling != "none" else "llama3"}
    if get("expert_count", 0):
        raise DataError(f"{file.path} is a mixture of {get('expert_count')} experts, which cannot be imported")
    return described


def hugging_face_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; None for a name that is not known."""
    for theirs, ours in TOP.items():
        if name == ours:
            return theirs
    begin, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    stem, _, kind = rest.rpartition(".")
    for theirs, ours in IN_LAYER.items():
        if begin == "blk" and stem == ours and kind in ("weight", "bias"):
            return f"model.layers.{layer}.{theirs}.{kind}"
    return None


def halves_from_pairs(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from the order 0, D/2, 1, D/2 + 1, … back to 0, 1, 2, …"""
    heads = tensor.shape[0] // head_dim
    return tensor.reshape(heads, head_dim // 2, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _nearest_decimal(value: float) -> float:
    """The short decimal that an fp32 number was made from: 9.999999747378752e-06 -> 1e-05."""
    return float(f"{value:.6g}")


def tokenizer_json(meta: dict[str, Any]) -> tuple[str, str, str]:
    """(tokenizer.json, BOS, EOS) of a byte-level BPE in GGUF metadata; ("", what it is instead, "") for another kind."""
    kind, pre = meta.get("tokenizer.ggml.model", "none"), meta.get("tokenizer.ggml.pre", "default")
    split = _pretokenizers(pre)
    if kind != "gpt2" or split is None:
        return "", f"{kind}, {pre}", ""
    tokens, types = meta["tokenizer.ggml.tokens"], meta.get("tokenizer.ggml.token_type")
    types = types or [NORMAL] * len(tokens)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": tokens[i], **flags, "special": t == CONTROL} for i, t in enumerate(types) if t in (CONTROL, USER_DEFINED)]
    whole = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]],
        },
    }
    eos = tokens[meta["tokenizer.ggml.eos_token_id"]]
    return json.dumps(whole), tokens[meta["tokenizer.ggml.bos_token_id"]] if "tokenizer.ggml.bos_token_id" in meta else eos, eos


def _pretokenizers(pre: str) -> list[dict[str, Any]] | None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pattern = {"llama-bpe": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}.get(pre)
    if pattern:
        return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, byte_level | {"use_regex": False}]
    if pre == "smollm":
        return [{"type": "Digits", "individual_digits": True}, byte_level | {"use_regex": True}]
    return [byte_level | {"use_regex": True}] if pre == "gpt-2" else None
