"""Files of others are looked at before they are believed: every fault is one sentence that names file and key, before anything is written."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_gguf import TOKENS, import_file, small_llama, write_gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from feeb_interchange.gguf.gguf_file import GgufFile
from feeb_pipelines.cli import run_command
from feebcore.api import open_model
from feebcore.artifacts import Workspace
from feebcore.errors import ArtifactError, DataError
from feebcore.model.build import build_model
from feebcore.model.io import load_model, save_model
from feebcore.parts import resolve_part

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB = 300


def codec(**model: Any) -> dict[str, Any]:
    """Bytes, the merges `th` and `the`, two special tokens and two added tokens that are ordinary text."""
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*LETTERS, "th", "the"])}, merges=[("t", "h"), ("th", "e")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|start|>", "<|end|>"])
    made.add_tokens([AddedToken("    ", special=False, normalized=False), AddedToken("<think>", special=False, normalized=False)])
    whole = json.loads(made.to_str())
    whole["model"] |= model
    return whole


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a small random llama."""
    folder = tmp_path_factory.mktemp("plain")
    part = resolve_part("architectures", {"name": "llama", "num_layers": 1, "d_model": 32, "attention": {"num_kv_heads": 2}, "lm_head": "linear"})
    save_model(folder / "made", build_model(part, VOCAB, 24), part)
    resolve_part("exporters", "huggingface").build()(folder / "made", folder / "hf")
    (folder / "hf/tokenizer.json").write_text(json.dumps(codec()))
    (folder / "hf/tokenizer_config.json").write_text(json.dumps({"bos_token": "<|start|>", "eos_token": "<|end|>"}))
    return folder / "hf"


@pytest.fixture
def theirs(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "theirs"))


def take_in(source: Path, folder: Path) -> tuple[Any, Any]:
    resolve_part("importers", "huggingface").build()(source, folder)
    return open_model(folder)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(source: Path, folder: Path, message: str) -> None:
    with pytest.raises((DataError, ArtifactError), match=message) as caught:
        take_in(source, folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


# --- tokenizers


def test_settings_for_training_are_left_out_and_said(theirs: Path, tmp_path: Path) -> None:
    _, usual = take_in(theirs, tmp_path / "usual")
    whole = codec(dropout=0.5)
    whole |= {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}}
    whole |= {"padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}}
    (theirs / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.warns(UserWarning, match=r"tokenizer.json: model.dropout = 0.5, truncation, padding is for training and left out"):
        _, tokenizer = take_in(theirs, tmp_path / "ours")
    text = "the other thing, thereafter" * 4
    assert {tuple(tokenizer.encode(text)) for _ in range(20)} == {tuple(usual.encode(text))}


def test_text_makes_no_special_token_and_added_tokens_that_are_text_stay(theirs: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    _, tokenizer = take_in(theirs, tmp_path / "ours")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(theirs / "tokenizer.json"))
    ordinary = "    if the <think>: é"
    assert tokenizer.encode(ordinary) == reference(ordinary, add_special_tokens=False)["input_ids"]
    assert {260, 261} <= set(tokenizer.encode(ordinary))
    ids = tokenizer.encode("<|start|>the<|end|>")
    assert not {258, 259} & set(ids)
    assert tokenizer.decode(ids) == "<|start|>the<|end|>"


@pytest.mark.parametrize("kind", ["ignore_merges", "unigram"])
def test_special_tokens_in_the_models_own_vocabulary_are_not_made_of_text(kind: str, theirs: Path, tmp_path: Path) -> None:
    whole = codec()
    whole["added_tokens"] = [t for t in whole["added_tokens"] if t["special"]]
    pieces = [*LETTERS, "th", "the", "<|start|>", "<|end|>"]
    if kind == "unigram":
        whole["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [[piece, -float(len(piece) == 1)] for piece in pieces], "byte_fallback": False}
    else:
        whole["model"] |= {"vocab": {piece: i for i, piece in enumerate(pieces)}, "ignore_merges": True}
    whole["pre_tokenizer"] = None
    (theirs / "tokenizer.json").write_text(json.dumps(whole))
    _, tokenizer = take_in(theirs, tmp_path / "ours")
    assert not {258, 259} & set(tokenizer.encode("<|end|>"))
    assert not {258, 259} & set(tokenizer.encode("a<|start|>"))


def test_ids_with_gaps_are_all_in_the_vocabulary(tmp_path: Path) -> None:
    from feeb_interchange.imported.tokenizer import ImportedTokenizer

    whole = codec()
    whole["model"]["vocab"]["the"] = 900
    assert ImportedTokenizer(json.dumps(whole), "<|start|>", "<|end|>", 0, "x").vocab_size >= 901


def with_added(number: int, content: str) -> dict[str, Any]:
    whole = codec()
    return whole | {"added_tokens": [*whole["added_tokens"], whole["added_tokens"][0] | {"id": number, "content": content}]}


BAD_TOKENIZERS = [
    ("", "is not JSON"),
    ("{}", "tokenizer.json is not a tokenizer: it has no object 'model'"),
    ("[]", "it has no object 'model'"),
    ('{"model": {"type": "BPE", "vocab": 3}}', "model.vocab is neither"),
    ('{"model": {"vocab": {}}, "added_tokens": [{"id": "a"}]}', "added_tokens must be a list of objects with id and content"),
    ('{"model": {"type": "nothing", "vocab": {"<|start|>": 0, "<|end|>": 1}}}', "is not a tokenizer"),
    ('{"version": "1.0", "added_tok', "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    (json.dumps(codec(unk_token="<missing>") | {"pre_tokenizer": None}), "cannot encode every text"),
    ('{"model": "\udce9"}', "tokenizer.json is not UTF-8 text"),
    (json.dumps(codec(vocab=codec()["model"]["vocab"] | {"the": 5})), "tokens '.' and 'the' both have id 5; the file is damaged"),
    (json.dumps(with_added(5, "<|new|>")), r"added token '<\|new\|>' has id 5, which is that of '.'; the file is damaged"),
    (json.dumps(with_added(270, "<|end|>")), r"added token '<\|end\|>' has id 270"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TOKENIZERS, ids=[m[:30] + str(i) for i, (_, m) in enumerate(BAD_TOKENIZERS)])
def test_a_file_that_is_no_tokenizer_is_named(text: str, message: str, theirs: Path, tmp_path: Path) -> None:
    (theirs / "tokenizer.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(theirs, tmp_path / "ours", message)


def test_a_tokenizer_larger_than_the_model_is_refused(theirs: Path, tmp_path: Path) -> None:
    whole = codec()
    whole["added_tokens"] += [whole["added_tokens"][0] | {"id": VOCAB + i, "content": f"<|new{i}|>"} for i in range(2)]
    (theirs / "tokenizer.json").write_text(json.dumps(whole))
    refused(theirs, tmp_path / "ours", r"token '<\|new0\|>' has id 300 and 1 more, the model has a vocabulary of 300 \(vocab_size\)")


def test_several_ids_that_end_a_text_are_said(theirs: Path, tmp_path: Path) -> None:
    (theirs / "generation_config.json").write_text(json.dumps({"eos_token_id": [259, 261]}))
    with pytest.warns(UserWarning, match=r"eos_token_id also lists '<think>' \(261\); here only '<\|end\|>' ends a text"):
        _, tokenizer = take_in(theirs, tmp_path / "ours")
    assert tokenizer.eos_id == 259
    (theirs / "tokenizer_config.json").unlink()
    edit(theirs / "config.json", eos_token_id=[0], bos_token_id=258)
    with pytest.warns(UserWarning, match="also lists"):
        _, tokenizer = take_in(theirs, tmp_path / "again")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (258, 259)
    for ids, message in (([9999], "eos_token_id is 9999, which tokenizer.json does not have"), ("x", "neither an id nor a list of ids")):
        (theirs / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        refused(theirs, tmp_path / "never", message)


# --- config.json and weights

BAD_CONFIGS: list[tuple[Any, str]] = [
    ([], "config.json holds list, not an object"),
    ({"num_hidden_layers": "1"}, "num_hidden_layers is '1', not a whole number"),
    ({"num_attention_heads": 0}, "num_attention_heads is '0', not a whole number"),
    ({"hidden_size": -32}, "hidden_size is '-32'"),
    ({"hidden_size": 1 << 27}, r"embedding.weight has shape \(300, 134217728\), in the file it has shape \(300, 32\)"),
    ({"vocab_size": True}, "vocab_size is 'True'"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is 'nan', not a number above 0"),
    ({"rope_theta": "10000"}, "rope_theta is '10000'"),
    ({"rope_parameters": [1]}, r"rope_parameters is '\[1\]', not an object"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', not true or false"),
    ({"model_type": None}, "theirs: model_type '' cannot be imported"),
    ({"num_key_value_heads": 3}, "is contradictory: attention.num_kv_heads 3 does not divide num_heads"),
    ({"layer_types": [None]}, r"layer_types = \[None\]: kinds of layers without a name cannot be imported"),
    ({"max_position_embeddings": 1 << 28, "head_dim": 4096}, "its 268,435,456 positions take .* GiB .*--option seq_len=4096"),
    ({"quantization_config": {"bits": 4}}, "quantized weights cannot be imported"),
    ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, "rope_parameters.rope_theta = 10000.0 and rope_theta = 1000000.0; which one holds"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}}}, "rotary positions by kind of layer"),
    ({"rope_parameters": {"rope_type": "default", "type": "linear"}}, "which one holds cannot be known"),
    ({"layer_types": ["sliding_attention"], "sliding_window": 8}, "sliding_window = 8"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS, ids=[m[:40] + str(i) for i, (_, m) in enumerate(BAD_CONFIGS)])
def test_a_config_that_cannot_be_is_refused_by_key(changes: Any, message: str, theirs: Path, tmp_path: Path) -> None:
    if isinstance(changes, list):
        (theirs / "config.json").write_text("[]")
    else:
        edit(theirs / "config.json", **changes)
    refused(theirs, tmp_path / "ours", message)


def test_rotary_positions_said_twice_alike_are_one(theirs: Path, tmp_path: Path) -> None:
    for i, said in enumerate(
        ({"rope_theta": 1000000, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, {"rope_theta": 1e6, "rope_parameters": None})
    ):
        edit(theirs / "config.json", **said)
        take_in(theirs, tmp_path / f"{i}")
        assert json.loads((tmp_path / f"{i}/model.json").read_text())["architecture"]["position"]["base"] == 1e6


@torch.no_grad()
def test_a_head_beside_tied_embeddings_is_the_embedding_or_refused(theirs: Path, tmp_path: Path) -> None:
    edit(theirs / "config.json", tie_word_embeddings=True)
    refused(theirs, tmp_path / "ours", "tie_word_embeddings is true, and yet lm_head.weight is there and differs")
    tensors = load_file(theirs / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, theirs / "model.safetensors")
    model, _ = take_in(theirs, tmp_path / "ours")
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(theirs).eval()
    tokens = torch.arange(24)[None]
    torch.testing.assert_close(model.lm_head(model(tokens).hidden), reference(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "holds NaN or infinite values"),
        ("int", "holds int32, not floating-point weights"),
        ("shape", r"the last of .*mlp\.gate_proj\.weight .*mlp\.up_proj\.weight \(\d+, 31\)"),
    ],
)
def test_weights_that_are_none_are_named(kind: str, message: str, theirs: Path, tmp_path: Path) -> None:
    tensors = load_file(theirs / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    changed = {"nan": tensors[name] * float("nan"), "int": tensors[name].int(), "shape": tensors[name][:, :-1].contiguous()}[kind]
    save_file(tensors | {name: changed}, theirs / "model.safetensors")
    refused(theirs, tmp_path / "ours", message)


BAD_INDEXES = ["[]", '{"metadata": {}}', '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../model.safetensors"}}']
BAD_INDEXES += ['{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": "model.bin"}}', '{"weight_map": {"a": "gone.safetensors"}}', "{"]


@pytest.mark.parametrize("text", BAD_INDEXES)
def test_an_index_names_files_of_its_folder(text: str, theirs: Path, tmp_path: Path) -> None:
    (theirs / "model.safetensors.index.json").write_text(text)
    refused(theirs, tmp_path / "ours", r"model\.safetensors\.index\.json (has no weight_map|names|is damaged)")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_no_damage(name: str, theirs: Path, tmp_path: Path) -> None:
    (theirs / name).write_bytes(b"\xef\xbb\xbf" + (theirs / name).read_bytes())
    take_in(theirs, tmp_path / "ours")
    assert (tmp_path / "ours").is_dir()


# --- GGUF


def test_tensors_are_called_what_the_file_calls_them(tmp_path: Path) -> None:
    source, _ = small_llama(tmp_path, "llama")
    whole = GgufFile(source)
    tensors = {name: whole.read(name) for name in whole.tensors}
    damaged = {"blk.0.ffn_up.weight": tensors["blk.0.ffn_up.weight"][:, :-1], "blk.1.attn_norm.weight": tensors["blk.1.attn_norm.weight"] * np.nan}
    for name, tensor in damaged.items():
        write_gguf(tmp_path / "a.gguf", whole.metadata, tensors | {name: np.ascontiguousarray(tensor)})
        with pytest.raises(DataError, match=f"a.gguf: .*{name}"):
            import_file(tmp_path / "a.gguf", tmp_path / "ours")
    write_gguf(tmp_path / "a.gguf", whole.metadata, {name: tensor for name, tensor in tensors.items() if name != "blk.0.attn_k.weight"})
    with pytest.raises(DataError, match=r"a\.gguf: there is no tensor 'blk\.0\.attn_k\.weight'"):
        import_file(tmp_path / "a.gguf", tmp_path / "ours")


def in_parts(folder: Path, tensors: dict[str, np.ndarray], meta: dict[str, Any], count: int = 3, **changes: Any) -> list[Path]:
    names = sorted(tensors)
    paths = []
    for i in range(count):
        said = {"split.no": i, "split.count": count, "split.tensors.count": len(names)} | changes
        part = {name: tensors[name] for name in names[i::count]}
        paths.append(write_gguf(folder / f"m-{i + 1:05}-of-{count:05}.gguf", (meta if i == 0 else {}) | said, part))
    return paths


@torch.no_grad()
def test_a_model_in_parts_is_the_whole_model(tmp_path: Path) -> None:
    source, model = small_llama(tmp_path, "llama")
    whole = GgufFile(source)
    parts = in_parts(tmp_path, {name: whole.read(name) for name in whole.tensors}, whole.metadata)
    tokens = torch.arange(16)[None]
    for i in (0, 2):
        again = load_model(import_file(parts[i], tmp_path / f"ours{i}"))
        assert torch.equal(again.lm_head(again(tokens).hidden), model.lm_head(model(tokens).hidden))
    parts[1].unlink()
    for i in (0, 2):
        with pytest.raises(DataError, match=r"is one of 3 parts; missing next to it: m-00002-of-00003\.gguf"):
            import_file(parts[i], tmp_path / "never")
    alone = parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(DataError, match=r"one of 3 parts \(split.count\); give the parts their names"):
        import_file(alone, tmp_path / "never")
    parts = in_parts(tmp_path, {name: whole.read(name) for name in whole.tensors}, whole.metadata, **{"split.tensors.count": 99})
    with pytest.raises(DataError, match=r"split\.tensors\.count says 99"):
        import_file(parts[0], tmp_path / "never")


GGUF_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"general.alignment": 0}, "general.alignment is 0"),
    ({"general.alignment": "x"}, "general.alignment is 'x', not a whole number"),
    ({"attention.head_count": 0}, "llama.attention.head_count is 0, not a number above 0"),
    ({"embedding_length": "32"}, "llama.embedding_length is '32'"),
    ({"block_count": [1, 2]}, "llama.block_count is a list of 2"),
    ({"rope.freq_base": float("nan")}, "llama.rope.freq_base is nan"),
    ({"attention.layer_norm_rms_epsilon": float("inf")}, "layer_norm_rms_epsilon is inf"),
    ({"tokenizer.ggml.eos_token_id": 99999}, "tokenizer.ggml.eos_token_id is 99999, the vocabulary has"),
    ({"tokenizer.ggml.eos_token_id": -1.0}, "tokenizer.ggml.eos_token_id is -1.0"),
    ({"tokenizer.ggml.merges": ["t"]}, "is not a tokenizer"),
    ({"tokenizer.ggml.merges": [1]}, "tokenizer.ggml.merges, which is a list of str"),
    ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type 1"),
    ({"tokenizer.ggml.tokens": 7}, "tokenizer.ggml.tokens, which is a list of str"),
    ({"tokenizer.ggml.tokens": [*TOKENS, "<|one more|>"], "tokenizer.ggml.token_type": [1] * (len(TOKENS) + 1)}, "the model has a vocabulary of"),
    ({"attention.sliding_window": 4}, "sliding windows"),
    ({"attention.value_length": 4}, "value_length differs"),
]


@pytest.mark.parametrize(("changes", "message"), GGUF_CHANGES, ids=[m[:40] + str(i) for i, (_, m) in enumerate(GGUF_CHANGES)])
def test_metadata_that_cannot_be_is_refused_by_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source, _ = small_llama(tmp_path, "llama", **changes)
    with pytest.raises(DataError, match=message) as caught:
        import_file(source, tmp_path / "ours")
    assert str(source) in str(caught.value)


def without(source: Path, target: Path, *keys: str) -> Path:
    whole = GgufFile(source)
    return write_gguf(target, {k: v for k, v in whole.metadata.items() if k not in keys}, {name: whole.read(name) for name in whole.tensors})


def test_metadata_that_is_missing_is_named_or_done_without(tmp_path: Path) -> None:
    source, _ = small_llama(tmp_path, "llama")
    _, tokenizer = open_model(import_file(without(source, tmp_path / "a.gguf", "tokenizer.ggml.eos_token_id"), tmp_path / "a"))
    assert tokenizer.eos_id == tokenizer.bos_id
    with pytest.warns(UserWarning, match="neither tokenizer.ggml.eos_token_id nor bos_token_id"):
        import_file(without(source, tmp_path / "b.gguf", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.bos_token_id"), tmp_path / "b")
    for key in ("tokenizer.ggml.merges", "llama.block_count", "llama.context_length"):
        with pytest.raises(DataError, match=f"the metadata has no {key}"):
            import_file(without(source, tmp_path / "c.gguf", key), tmp_path / "c")


def raw(path: Path, *records: bytes, tensors: int = 0) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, len(records) if not tensors else 0) + b"".join(records) + b"\0" * 64)
    return path


def key(name: str) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode()


HOSTILE = {
    "arrays in arrays": (key("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000 + struct.pack("<IQ", 4, 0), 0, "too deep|truncated"),
    "a string longer than the file": (key("a") + struct.pack("<IQ", 8, 1 << 62), 0, "truncated or damaged"),
    "an array longer than the file": (key("a") + struct.pack("<IIQ", 9, 4, 1 << 40), 0, "truncated or damaged"),
    "a type that does not exist": (key("a") + struct.pack("<I", 77), 0, "truncated or damaged"),
    "many dimensions": (key("w") + struct.pack("<I", 1 << 31), 1, "dimensions"),
    "an offset beyond the end": (key("w") + struct.pack("<IQIQ", 1, 4, 0, 1 << 40), 1, "is truncated: w is not all there"),
    "a size beyond the end": (key("w") + struct.pack("<IQIQ", 1, 1 << 61, 0, 0), 1, "is truncated: w is not all there"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_a_sentence(name: str, tmp_path: Path) -> None:
    record, tensors, message = HOSTILE[name]
    with pytest.raises(DataError, match=message):
        GgufFile(raw(tmp_path / "a.gguf", record, tensors=tensors)).read("w")
    twice = key("a") + struct.pack("<II", 4, 1)
    with pytest.raises(DataError, match="has 'a' twice"):
        GgufFile(raw(tmp_path / "b.gguf", twice, twice))
    (tmp_path / "c.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + b"\0" * 64)
    with pytest.raises(DataError, match="big-endian"):
        GgufFile(tmp_path / "c.gguf")


# --- the command


def test_a_second_name_for_the_same_model_shares_its_files(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(tmp_path / "data")]
    edit(theirs / "config.json", eos_token_id=[259, 0])
    assert run_command(["import", str(theirs), "one", *where]) == 0
    assert "feeb: " in (error := capsys.readouterr().err)
    assert "also lists" in error
    assert "Warning" not in error
    for _ in range(2):
        assert run_command(["import", str(theirs), "two", *where]) == 0
        assert "in the workspace already, as one; two is another name for the same files" in capsys.readouterr().err
    found = {artifact.name: artifact for _, artifact in Workspace(tmp_path / "data").all() if artifact}
    assert set(found) == {"one", "two"}
    assert os.path.samefile(*(artifact.file("model/model.safetensors") for artifact in found.values()))
    for artifact in found.values():
        artifact.check_hash("model/model.safetensors")
