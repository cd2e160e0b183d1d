"""Hugging Face folders: models that transformers made come in with the same logits and go out with the same tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from feebcore.api import open_model
from feebcore.errors import DataError
from feebcore.model.build import build_model
from feebcore.model.io import load_model, save_model
from feebcore.parts import resolve_part

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 24}
MODELS = {
    "llama": transformers.LlamaConfig(**SMALL, num_key_value_heads=2, rms_norm_eps=1e-5),
    "llama, everything else": transformers.LlamaConfig(
        **SMALL,
        num_key_value_heads=4,
        head_dim=16,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    ),
    "mistral": transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=12, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "gpt2": transformers.GPT2Config(vocab_size=67, n_positions=24, n_embd=32, n_layer=2, n_head=4),
    "gpt2, everything else": transformers.GPT2Config(
        vocab_size=67, n_positions=24, n_embd=32, n_layer=2, n_head=4, n_inner=48, activation_function="relu", tie_word_embeddings=False
    ),
}


def import_folder(source: Path, folder: Path, **options: Any) -> Path:
    resolve_part("importers", {"name": "huggingface", **options}).build()(source, folder)
    return folder


def export_folder(folder: Path, target: Path, **options: Any) -> Path:
    resolve_part("exporters", {"name": "huggingface", **options}).build()(folder, target)
    return target


@torch.no_grad()
def made_by_transformers(config: Any, folder: Path, **save: Any) -> Any:
    """A model with weights large enough that every mistake is seen, saved in `folder`."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape))
        else:
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[0 if ".c_" in name else 1] ** 0.5)
    model.save_pretrained(folder, **save)
    return model


TOKENS = torch.randint(67, (2, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model.lm_head(model(tokens).hidden)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_transformers_and_the_tensors_come_back_equal(name: str, tmp_path: Path) -> None:
    theirs = made_by_transformers(MODELS[name], tmp_path / "theirs")
    ours = load_model(import_folder(tmp_path / "theirs", tmp_path / "ours"))
    wanted = theirs(TOKENS).logits
    assert wanted.std() > 0.3
    torch.testing.assert_close(logits_of(ours), wanted, atol=1e-5, rtol=1e-5)
    export_folder(tmp_path / "ours", tmp_path / "back")
    before, after = load_file(tmp_path / "theirs/model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    assert torch.equal(again(TOKENS).logits, wanted)
    assert again.config.model_type == ("llama" if name == "mistral" else theirs.config.model_type)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "qwen3"])
@torch.no_grad()
def test_a_model_made_here_is_the_same_in_transformers_and_after_coming_back(preset: str, tmp_path: Path) -> None:
    architecture = resolve_part("architectures", {"name": preset, "num_layers": 2, "d_model": 32})
    model = build_model(architecture, 67, 24).eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    save_model(tmp_path / "ours", model, architecture)
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", attn_implementation="eager").eval()
    torch.testing.assert_close(theirs(TOKENS).logits, logits_of(model), atol=1e-5, rtol=1e-5)
    again = load_model(import_folder(tmp_path / "theirs", tmp_path / "again"))
    assert torch.equal(logits_of(again), logits_of(model))
    assert again.count() == model.count()


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    theirs = made_by_transformers(MODELS["llama"], tmp_path / "theirs", max_shard_size="8KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3
    ours = load_model(import_folder(tmp_path / "theirs", tmp_path / "ours"))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)
    next(iter((tmp_path / "theirs").glob("model-00002*"))).unlink()
    with pytest.raises(DataError, match=r"model-00002.*is not there"):
        import_folder(tmp_path / "theirs", tmp_path / "ours")


def test_a_shorter_context_cuts_rotary_and_learned_positions_alike(tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        made_by_transformers(MODELS[name], tmp_path / name)
        whole = load_model(import_folder(tmp_path / name, tmp_path / "whole"))
        short = load_model(import_folder(tmp_path / name, tmp_path / "short", seq_len=9))
        assert short.seq_len == 9
        torch.testing.assert_close(logits_of(short, TOKENS[:, :9]), logits_of(whole, TOKENS[:, :9]), atol=1e-6, rtol=1e-6)
        with pytest.raises(DataError, match="more than the 24 tokens"):
            import_folder(tmp_path / name, tmp_path / "long", seq_len=25)


def test_weights_in_bf16_become_the_same_numbers_in_fp32(tmp_path: Path) -> None:
    made_by_transformers(MODELS["llama"], tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "half", dtype="bf16")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    import_folder(tmp_path / "half", tmp_path / "again")
    before, after = load_file(tmp_path / "ours/model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(before[k].bfloat16().float(), after[k]) for k in before)


# --- what is refused ---------------------------------------------------------------------------------------------------


def described(tmp_path: Path, name: str = "llama", **changes: Any) -> Path:
    """A folder of transformers with other words in its config.json."""
    made_by_transformers(MODELS[name], tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    (tmp_path / "theirs/config.json").write_text(json.dumps(config | changes))
    return tmp_path / "theirs"


REFUSED = [
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "rope_type = 'llama3'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope_type = 'linear'"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("mistral", {"sliding_window": 8}, "sliding_window = 8"),
    ("gpt2", {"activation_function": "gelu"}, "activation_function = 'gelu'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("llama", {"model_type": "gpt_neox"}, "model_type 'gpt_neox' cannot be imported; known: llama, mistral, qwen2, qwen3, gpt2"),
    ("llama", {"model_type": "qwen3"}, "there is no tensor 'model.layers.0.self_attn.q_norm.weight'"),
    ("llama", {"num_hidden_layers": 1}, "9 tensors that a llama does not have, as 'model.layers.1"),
    ("llama", {"intermediate_size": 64}, "has shape"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_what_would_be_another_model_is_refused_by_name(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message.replace("[", r"\[")) as caught:
        import_folder(described(tmp_path, name, **changes), tmp_path / "ours")
    assert type(caught.value).__name__ in ("DataError", "ArtifactError")
    assert not (tmp_path / "ours").exists()


def test_pickle_is_refused_and_never_opened(tmp_path: Path) -> None:
    folder = described(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model.bin is pickle, .* never read; save the model with safe_serialization=True"):
        import_folder(folder, tmp_path / "ours")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = described(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"model.safetensors is truncated or damaged"):
        import_folder(folder, tmp_path / "ours")
    with pytest.raises(DataError, match=r"has no config.json"):
        import_folder(tmp_path, tmp_path / "ours")


CANNOT_LEAVE = [
    ({"name": "llama", "attention": {"logit_softcap": 30.0}}, r"attention.logit_softcap is 30.0, not 0.0"),
    ({"name": "llama", "block": "parallel"}, r"block is parallel, not prenorm"),
    ({"name": "gpt2", "position": "sinusoidal"}, r"position is sinusoidal, not learned"),
    ({"name": "llama", "feedforward": "relu_squared"}, r"llama: .*feedforward"),
]


@pytest.mark.parametrize(("architecture", "message"), CANNOT_LEAVE, ids=[m for _, m in CANNOT_LEAVE])
def test_a_model_that_no_family_expresses_is_not_exported(architecture: dict[str, Any], message: str, tmp_path: Path) -> None:
    part = resolve_part("architectures", architecture | {"num_layers": 1, "d_model": 32})
    save_model(tmp_path / "ours", build_model(part, 67, 24), part)
    with pytest.raises(DataError, match=message):
        export_folder(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    import_folder(described(tmp_path), tmp_path / "ours")
    with pytest.raises(DataError, match="is there already"):
        export_folder(tmp_path / "ours", tmp_path / "theirs")


# --- tokenizers --------------------------------------------------------------------------------------------------------


def codec(folder: Path, specials: tuple[str, ...]) -> Tokenizer:
    """Bytes and the merge of `t` and `h`, special tokens, saved as tokenizer.json."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*letters, "th"])}, merges=[("t", "h")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(specials))
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return made


TEXT = "the naïve <|end|> thing\n"


@pytest.mark.parametrize("said_in", ["tokenizer_config.json", "config.json"])
def test_the_tokenizer_comes_along_and_goes_back(said_in: str, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SMALL | {"vocab_size": 300}, num_key_value_heads=2, bos_token_id=257, eos_token_id=[258, 3])
    made_by_transformers(config, tmp_path / "theirs")
    their_codec = codec(tmp_path / "theirs", ("<|start|>", "<|end|>"))
    if said_in == "tokenizer_config.json":
        (tmp_path / "theirs/tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<|start|>"}, "eos_token": "<|end|>"}))
    model, tokenizer = open_model(import_folder(tmp_path / "theirs", tmp_path / "ours"))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size, model.vocab_size) == (257, 258, 300, 300)
    assert tokenizer.decode([257, *tokenizer.encode(TEXT), 258, 299]) == TEXT
    plain = TEXT.replace("<|end|>", "")
    assert tokenizer.encode(plain) == their_codec.encode(plain).ids
    assert 258 in their_codec.encode(TEXT).ids
    assert 258 not in tokenizer.encode(TEXT)  # text stays text
    export_folder(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back(plain, add_special_tokens=False)["input_ids"] == their_codec.encode(plain).ids
    assert (back.bos_token_id, back.eos_token_id) == (257, 258)
    assert json.loads((tmp_path / "back/config.json").read_text())["eos_token_id"] == 258


def test_a_tokenizer_trained_here_is_read_by_transformers(tmp_path: Path) -> None:
    from feebcore.data.tokenizers import save_part

    part = resolve_part("tokenizers", {"name": "bpe", "vocab_size": 275, "min_frequency": 1})
    (tmp_path / "tokenizer").mkdir()
    trained = part.build().train(lambda: iter([TEXT * 50, "1234 other words " * 20]), tmp_path / "tokenizer", lambda done, total: None)
    save_part(tmp_path / "tokenizer", part)
    architecture = resolve_part("architectures", {"name": "llama", "num_layers": 1, "d_model": 32})
    save_model(tmp_path / "ours", build_model(architecture, 275, 24), architecture, tmp_path / "tokenizer")
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    for text in ("the thing 12", "other\n words"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == trained.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (trained.bos_id, trained.eos_id)


def test_a_tokenizer_without_an_end_is_an_error(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, bos_token_id=None, eos_token_id=None)
    made_by_transformers(config, tmp_path / "theirs")
    codec(tmp_path / "theirs", ())
    with pytest.raises(DataError, match="which token ends a text"):
        import_folder(tmp_path / "theirs", tmp_path / "ours")
