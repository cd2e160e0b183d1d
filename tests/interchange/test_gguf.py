"""GGUF: every value type against the format's description written out number by number, and a model against the same in
Hugging Face form."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feeb_interchange.gguf.gguf_file import TYPES, GgufFile
from feeb_interchange.gguf.gguf_models import hugging_face_name
from feebcore.api import open_model
from feebcore.errors import DataError
from feebcore.model.build import build_model
from feebcore.model.io import load_model, save_model
from feebcore.parts import resolve_part

Values = list[float]


def half(block: bytes, at: int) -> float:
    return struct.unpack_from("<e", block, at)[0]


def nibble(block: bytes, start: int, i: int) -> int:
    """Value i of 32 in 16 bytes: the first half in low bits, the second in high bits."""
    return block[start + i] & 15 if i < 16 else block[start + i - 16] >> 4


def fifth(block: bytes, start: int, i: int) -> int:
    return (int.from_bytes(block[start : start + 4], "little") >> i & 1) << 4


def scale_and_minimum(s: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4


def k_block(b: bytes, quants: int, fifths: int | None) -> Values:
    found = []
    for i in range(256):
        group, inside = divmod(i, 32)
        byte = b[quants + group // 2 * 32 + inside]
        q = byte >> 4 if group % 2 else byte & 15
        if fifths is not None:
            q |= (b[fifths + inside] >> group & 1) << 4
        scale, minimum = scale_and_minimum(b[4:16], group)
        found.append(half(b, 0) * scale * q - half(b, 2) * minimum)
    return found


def q6_block(b: bytes) -> Values:
    found = []
    for i in range(256):
        part, inside = divmod(i, 128)
        quarter, place = divmod(inside, 32)
        byte = b[64 * part + 32 * (quarter % 2) + place]
        low = byte >> 4 if quarter >= 2 else byte & 15
        high = b[128 + 32 * part + place] >> 2 * quarter & 3
        scale = struct.unpack_from("<b", b, 192 + i // 16)[0]
        found.append(half(b, 208) * scale * ((low | high << 4) - 32))
    return found


PLAIN: dict[str, Callable[[bytes], Values]] = {
    "F32": lambda b: list(struct.unpack("<f", b)),
    "F16": lambda b: list(struct.unpack("<e", b)),
    "BF16": lambda b: list(struct.unpack("<f", b"\0\0" + b)),
    "Q4_0": lambda b: [half(b, 0) * (nibble(b, 2, i) - 8) for i in range(32)],
    "Q4_1": lambda b: [half(b, 0) * nibble(b, 4, i) + half(b, 2) for i in range(32)],
    "Q5_0": lambda b: [half(b, 0) * ((nibble(b, 6, i) | fifth(b, 2, i)) - 16) for i in range(32)],
    "Q5_1": lambda b: [half(b, 0) * (nibble(b, 8, i) | fifth(b, 4, i)) + half(b, 2) for i in range(32)],
    "Q8_0": lambda b: [half(b, 0) * struct.unpack_from("<b", b, 2 + i)[0] for i in range(32)],
    "Q4_K": lambda b: k_block(b, 16, None),
    "Q5_K": lambda b: k_block(b, 48, 16),
    "Q6_K": q6_block,
}


def random_blocks(name: str, count: int) -> np.ndarray:
    """Random bytes, with scales that are ordinary numbers."""
    kind = next(t for t in TYPES.values() if t.name == name)
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (count, kind.size), dtype=np.uint8)
    if kind.values == 1:
        return raw & 0b10111111  # no NaN, no infinity
    for at in {"Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q6_K": [208]}.get(name, [0, 2]):
        raw[:, at : at + 2] = rng.standard_normal((count, 1)).astype("<f2").view(np.uint8)
    return raw


def test_every_type_has_a_plain_reference() -> None:
    assert {t.name for t in TYPES.values()} == PLAIN.keys()


@pytest.mark.parametrize("name", PLAIN)
def test_values_are_those_of_the_formats_description(name: str) -> None:
    kind = next(t for t in TYPES.values() if t.name == name)
    raw = random_blocks(name, 20)
    found = kind.read(raw)
    assert (found.shape, found.dtype) == ((20, kind.values), np.float32)
    np.testing.assert_allclose(found, [PLAIN[name](block.tobytes()) for block in raw], rtol=1e-6, atol=1e-6)


# --- a small writer, for tests only ------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_of(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray], types: dict[str, int] | None = None) -> Path:
    """tensors: fp32 arrays; types: another number where one is to be claimed."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value_of(value) for key, value in metadata.items())
    body = b""
    for name, array in tensors.items():
        head += text(name) + struct.pack(f"<I{array.ndim}QIQ", array.ndim, *array.shape[::-1], (types or {}).get(name, 0), len(body))
        body += array.astype("<f4").tobytes()
        body += b"\0" * (-len(body) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)
    return path


TOKENS = [*(chr(c) for c in range(256, 324)), *(chr(c) for c in range(33, 127)), "th", "<|start|>", "<|end|>"]


def small_llama(folder: Path, kind: str, **changes: Any) -> tuple[Path, Any]:
    """The same random model as a GGUF file, rows of q and k in llama.cpp's order, and as feeb builds it."""
    qwen = kind == "qwen3"
    attention = {"num_kv_heads": 2, "qk_norm": qwen}
    part = resolve_part(
        "architectures",
        {
            "name": "qwen3" if qwen else "llama",
            "num_layers": 2,
            "d_model": 32,
            "attention": attention,
            "feedforward": {"intermediate_size": 48},
            "position": {"base": 1e4},
        },
    )
    model = build_model(part, len(TOKENS), 16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    save_model(folder / "made", model, part)
    resolve_part("exporters", "huggingface").build()(folder / "made", folder / "hf")
    from safetensors.torch import load_file

    theirs = load_file(folder / "hf/model.safetensors")
    meta = {
        "general.architecture": kind,
        "general.alignment": 32,
        "context_length": 16,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6 if qwen else 1e-5,
        "rope.freq_base": 1e4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 2) + [3, 3],
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": len(TOKENS) - 2,
        "tokenizer.ggml.eos_token_id": len(TOKENS) - 1,
    } | changes
    meta = {key if key.startswith(("general.", "tokenizer.")) else f"{kind}.{key}": value for key, value in meta.items()}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm"}
    names |= {"post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output", "mlp.": "ffn_", "self_attn.": "attn_", "_proj": ""}
    tensors = {}
    for name, tensor in theirs.items():
        array, short = tensor.numpy(), name.replace("model.layers", "blk")
        for long, brief in names.items():
            short = short.replace(long, brief)
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):  # as llama.cpp's converter: neighbors become pairs
            array = array.reshape(-1, 2, 4, 32).swapaxes(1, 2).reshape(array.shape)
        tensors[short] = array
    return write_gguf(folder / "model.gguf", meta, tensors), model


def import_file(source: Path, folder: Path, **options: Any) -> Path:
    resolve_part("importers", {"name": "gguf", **options}).build()(source, folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@torch.no_grad()
def test_a_file_is_the_model_it_was_made_from(kind: str, tmp_path: Path) -> None:
    file, model = small_llama(tmp_path, kind)
    again, tokenizer = open_model(import_file(file, tmp_path / "ours"))
    tokens = torch.randint(len(TOKENS), (2, 16), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.lm_head(again(tokens).hidden), model.lm_head(model(tokens).hidden))
    assert again.seq_len == 16
    assert tokenizer.decode(tokenizer.encode("the <|end|> thing")) == "the <|end|> thing"
    assert tokenizer.encode("th") == [TOKENS.index("th")]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (len(TOKENS) - 2, len(TOKENS) - 1)


def test_an_unknown_tokenizer_is_left_out_and_said(tmp_path: Path) -> None:
    file, _ = small_llama(tmp_path, "llama", **{"tokenizer.ggml.model": "llama"})
    with pytest.warns(UserWarning, match=r"its tokenizer \(llama, gpt-2\) cannot be used"):
        import_file(file, tmp_path / "ours")
    assert load_model(tmp_path / "ours").seq_len == 16
    assert not (tmp_path / "ours/tokenizer").exists()


REFUSED = [
    ({"general.architecture": "mamba"}, "architecture 'mamba'; GGUF files of llama, qwen2, qwen3 can be imported"),
    ({"rope.scaling.type": "yarn"}, "rope_type = 'yarn'"),
    ({"rope.dimension_count": 4, "attention.key_length": 8}, "partial_rotary_factor"),
    ({"expert_count": 8}, "a mixture of 8 experts"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_would_be_another_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file, _ = small_llama(tmp_path, "llama", **changes)
    with pytest.raises(DataError, match=message):
        import_file(file, tmp_path / "ours")


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"x": 1}, {"w": np.ones((4, 32), dtype=np.float32)}, types={"w": 20})
    assert GgufFile(path).tensors["w"].shape == (4, 32)
    with pytest.raises(DataError, match="w is stored as IQ4_NL, which is not supported; use a file of F32, F16, Q4_0"):
        GgufFile(path).read("w")


def test_metadata_of_every_kind_comes_back(tmp_path: Path) -> None:
    wanted = {"a": 7, "b": 0.5, "c": "naïve", "d": True, "e": ["x", "", "zz"], "f": [3, -4, 5]}
    assert GgufFile(write_gguf(tmp_path / "a.gguf", wanted, {})).metadata == wanted


def test_files_cut_anywhere_are_an_error_and_never_a_wrong_tensor(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "a.gguf", {"name": "small", "list": [1, 2, 3]}, {"w": np.arange(64, dtype=np.float32)}).read_bytes()
    for size in range(0, len(whole), 3):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"truncated|not a GGUF|cannot be read"):
            GgufFile(tmp_path / "cut.gguf").read("w")
    (tmp_path / "old.gguf").write_bytes(b"GGUF" + struct.pack("<I", 1) + whole[8:])
    with pytest.raises(DataError, match="version 1"):
        GgufFile(tmp_path / "old.gguf")


def test_names_outside_the_family_are_not_guessed() -> None:
    assert hugging_face_name("blk.12.attn_q.bias") == "model.layers.12.self_attn.q_proj.bias"
    for name in ("rope_freqs.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q.scale", "x.0.attn_q.weight"):
        assert hugging_face_name(name) is None
