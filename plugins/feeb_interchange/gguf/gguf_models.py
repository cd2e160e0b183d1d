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

from feeb_interchange.gguf.gguf_file import GgufModel
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
        file = GgufModel(Path(source))
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
            assert codec is not None
            text, bos, eos = tokenizer_json(file.metadata, str(source))
            if text:
                write_codec_folder(codec, text, bos, eos, described["vocab_size"], str(source))
            else:
                warnings.warn(f"{source}: its tokenizer ({bos}) cannot be used, so the model has none: it scores and trains on ids only", stacklevel=2)
                codec = None
            import_model(described, take, set(stored), str(source), config.seq_len, folder, codec, gguf_name)

    return run


def describe(file: GgufModel) -> dict[str, Any]:
    """What a config.json of the same model says; `gguf_pairs`: whether rows of q and k are in llama.cpp's order."""
    meta, kind = file.metadata, file.metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise DataError(f"{file.path} holds architecture {kind!r}; GGUF files of {', '.join(ARCHITECTURES)} can be imported")

    def number(key: str, kinds: type | tuple[type, ...] = int, default: Any = None) -> Any:
        value: Any = meta.get(f"{kind}.{key}", default)
        if value is None:
            raise DataError(f"{file.path}: the metadata has no {kind}.{key}")
        size: Any = value if isinstance(value, kinds) and not isinstance(value, bool) else 0
        if not 0 < size < 2**31:
            raise DataError(f"{file.path}: {kind}.{key} is {_brief(value)}, not a number above 0")
        return value

    width, heads = number("embedding_length"), number("attention.head_count")
    head_dim = number("attention.key_length", default=number("rope.dimension_count", default=max(1, width // heads)))
    rotated = number("rope.dimension_count", default=head_dim)
    if number("attention.value_length", default=head_dim) != head_dim:
        raise DataError(f"{file.path}: {kind}.attention.value_length differs from the {head_dim} of keys, which cannot be imported")
    if "token_embd.weight" not in file.tensors:
        raise DataError(f"{file.path} has no tensor 'token_embd.weight'")
    described = {
        "model_type": kind,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": number("context_length"),
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "rms_norm_eps": _nearest_decimal(number("attention.layer_norm_rms_epsilon", (int, float))),
        "rope_theta": _nearest_decimal(number("rope.freq_base", (int, float), 10_000.0)),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "partial_rotary_factor": rotated / head_dim,
        "gguf_pairs": kind == "llama",
    }
    scaling = meta.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        described["rope_scaling"] = {"rope_type": scaling if scaling != "none" else "llama3"}
    if experts := meta.get(f"{kind}.expert_count", 0):
        raise DataError(f"{file.path} is a mixture of {experts} experts, which cannot be imported")
    if window := meta.get(f"{kind}.attention.sliding_window", 0):
        described |= {"sliding_window": window, "use_sliding_window": True}
    return described


def _brief(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)


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


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    stem, _, kind = rest.rpartition(".")
    return TOP.get(name) or f"blk.{layer}.{IN_LAYER[stem]}.{kind}"


def halves_from_pairs(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from the order 0, D/2, 1, D/2 + 1, … back to 0, 1, 2, …"""
    heads = tensor.shape[0] // head_dim
    return tensor.reshape(heads, head_dim // 2, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _nearest_decimal(value: float) -> float:
    """The short decimal that an fp32 number was made from: 9.999999747378752e-06 -> 1e-05."""
    return float(f"{value:.6g}")


def tokenizer_json(meta: dict[str, Any], origin: str) -> tuple[str, str, str]:
    """(tokenizer.json, BOS, EOS) of a byte-level BPE in GGUF metadata; ("", what it is instead, "") for another kind, and for one
    that does not say which token ends a text. Raises DataError for one that contradicts itself."""
    kind, pre = meta.get("tokenizer.ggml.model", "none"), meta.get("tokenizer.ggml.pre", "default")
    split = _pretokenizers(pre)
    if kind != "gpt2" or split is None:
        return "", f"{kind}, {pre}", ""

    def listed(key: str, of: type, default: Any = None) -> list[Any]:
        value = meta.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, list) or not all(isinstance(entry, of) for entry in value):
            said = "no" if value is None else f"{_brief(value)} as"
            raise DataError(f"{origin}: the metadata has {said} tokenizer.ggml.{key}, which is a list of {of.__name__}")
        return value

    def token_of(key: str) -> str | None:
        number = meta.get(f"tokenizer.ggml.{key}")
        if number is None:
            return None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(tokens):
            raise DataError(f"{origin}: tokenizer.ggml.{key} is {_brief(number)}, the vocabulary has {len(tokens)} tokens")
        return str(tokens[number])

    tokens, merges = listed("tokens", str), listed("merges", str)
    types = listed("token_type", int, [NORMAL] * len(tokens))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise DataError(f"{origin}: tokenizer.ggml.tokens has {len(tokens)} tokens ({len(set(tokens))} different), tokenizer.ggml.token_type {len(types)}")
    bos, eos = token_of("bos_token_id"), token_of("eos_token_id")
    eos = eos or bos
    if eos is None:
        return "", f"{kind}, {pre}, neither tokenizer.ggml.eos_token_id nor bos_token_id", ""
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
            "merges": [merge.split(" ") for merge in merges],
        },
    }
    return json.dumps(whole), bos or eos, eos


def _pretokenizers(pre: Any) -> list[dict[str, Any]] | None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pattern = {"llama-bpe": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}.get(str(pre))
    if pattern:
        return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, byte_level | {"use_regex": False}]
    if pre == "smollm":
        return [{"type": "Digits", "individual_digits": True}, byte_level | {"use_regex": True}]
    return [byte_level | {"use_regex": True}] if pre == "gpt-2" else None
