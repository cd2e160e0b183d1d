"""What the known families are in terms of parts, and what their weights are called. Weights are torch tensors.

A family translates both ways: `architecture(config)` makes options of feeb's transformer from a config.json,
`to_feeb(config, take)` the weights, `config(options)` and `from_feeb(...)` go back. Names of other libraries stand only here
and in gguf_models.py. H query heads, G key/value heads, D head width, F hidden width, C model width.

Equal by definition, so that nothing is approximated: Llama's rotation pairs dimension i with i + D/2, as `rope` does;
q, k and v are stacked into one matrix, gate and up too; GPT-2 stores its matrices transposed; Qwen2 has a bias on q, k, v only,
here the output's bias is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from feebcore.errors import DataError

Options = dict[str, Any]
Take = Callable[[str], Tensor]
"""`take(name) -> tensor` in fp32; each name is asked for once."""

LONGEST = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}  # tokens, where a config.json does not say
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


class Llama:
    """Llama, Mistral, Qwen2, Qwen3: rotary positions, RMS norms, SwiGLU."""

    model_types = ("llama", "mistral", "qwen2", "qwen3")
    ignored = ("rotary_emb.inv_freq",)
    prefix = "model."  # some folders hold the bare model

    @staticmethod
    def architecture(config: Options) -> Options:
        kind = config["model_type"]
        _refuse(config, "hidden_act", config.get("hidden_act", "silu") in ("silu", "swish"), "feedforwards other than SwiGLU")
        _refuse(config, "layer_types", all(isinstance(kind, str) for kind in config.get("layer_types", ())), "kinds of layers without a name")
        _refuse(config, "sliding_window", not _slides(config), "attention in sliding windows shorter than the context")
        _refuse(config, "quantization_config", not config.get("quantization_config"), "quantized weights")
        rope_type, base = _rope(config)
        _refuse({"rope_type": rope_type}, "rope_type", rope_type == "default", "rotary positions that are rescaled")
        heads, bias = config["num_attention_heads"], bool(config.get("attention_bias", kind == "qwen2"))
        return {
            "num_layers": config["num_hidden_layers"],
            "d_model": config["hidden_size"],
            "num_heads": heads,
            "head_dim": config.get("head_dim") or (128 if kind == "qwen3" else max(1, config["hidden_size"] // heads)),
            "attention": {
                "name": "gqa",
                "num_kv_heads": (config.get("num_key_value_heads") or heads) if kind == "llama" else config["num_key_value_heads"],
                "qk_norm": kind == "qwen3",
                "bias": bias,
            },
            "feedforward": {"name": "swiglu", "intermediate_size": config["intermediate_size"], "bias": bool(config.get("mlp_bias", False))},
            "norm": {"name": "rmsnorm", "eps": config.get("rms_norm_eps", 1e-6)},
            "position": {"name": "rope", "base": base},
            "lm_head": "tied" if config.get("tie_word_embeddings", False) else "linear",
        }

    @staticmethod
    def seq_len(config: Options) -> int:
        return config.get("max_position_embeddings", LONGEST[config["model_type"]])

    @staticmethod
    def to_feeb(config: Options, options: Options, take: Take) -> dict[str, Tensor]:
        attention, biased = options["attention"], options["feedforward"]["bias"]
        found = {"embedding.weight": take("model.embed_tokens.weight"), "final_norm.gain": take("model.norm.weight")}
        if options["lm_head"] == "linear":
            found["lm_head.weight"] = take("lm_head.weight")
        for layer in range(options["num_layers"]):
            theirs, ours = f"model.layers.{layer}.", f"stack.blocks.{layer}."
            found[ours + "attention_norm.gain"] = take(theirs + "input_layernorm.weight")
            found[ours + "feedforward_norm.gain"] = take(theirs + "post_attention_layernorm.weight")
            for kind in ("weight", "bias") if attention["bias"] else ("weight",):
                found[f"{ours}attention.qkv.{kind}"] = torch.cat([take(f"{theirs}self_attn.{x}_proj.{kind}") for x in "qkv"])
                if kind == "bias" and config["model_type"] == "qwen2":
                    found[f"{ours}attention.out.bias"] = torch.zeros(options["d_model"])
                else:
                    found[f"{ours}attention.out.{kind}"] = take(f"{theirs}self_attn.o_proj.{kind}")
            if attention["qk_norm"]:
                for x in "qk":
                    found[f"{ours}attention.{x}_norm.gain"] = take(f"{theirs}self_attn.{x}_norm.weight")
            for kind in ("weight", "bias") if biased else ("weight",):
                found[f"{ours}feedforward.hidden.{kind}"] = torch.cat([take(f"{theirs}mlp.{x}_proj.{kind}") for x in ("gate", "up")])
                found[f"{ours}feedforward.out.{kind}"] = take(f"{theirs}mlp.down_proj.{kind}")
        return found

    @staticmethod
    def config(options: Options, vocab_size: int, seq_len: int, weights: dict[str, Tensor]) -> Options:
        attention, norm, base = options["attention"], options["norm"], options["position"].get("base", 10_000.0)
        out_is_zero = all(not t.any() for name, t in weights.items() if name.endswith("attention.out.bias"))
        kind = "qwen3" if attention.get("qk_norm") else "qwen2" if attention.get("bias") and out_is_zero else "llama"
        found = {
            "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[kind]],
            "model_type": kind,
            "vocab_size": vocab_size,
            "max_position_embeddings": seq_len,
            "hidden_size": options["d_model"],
            "intermediate_size": options["feedforward"]["intermediate_size"],
            "num_hidden_layers": options["num_layers"],
            "num_attention_heads": options["num_heads"],
            "num_key_value_heads": attention.get("num_kv_heads", options["num_heads"]),
            "head_dim": options["head_dim"],
            "hidden_act": "silu",
            "rms_norm_eps": norm.get("eps", 1e-6),
            "rope_theta": base,
            "rope_parameters": {"rope_type": "default", "rope_theta": base},
            "tie_word_embeddings": options["lm_head"]["name"] == "tied",
        }
        if kind != "qwen2":
            found["attention_bias"] = bool(attention.get("bias"))
        return found | ({"mlp_bias": True} if options["feedforward"].get("bias") else {})

    @staticmethod
    def from_feeb(options: Options, config: Options, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = [n * options["head_dim"] for n in (config["num_attention_heads"], config["num_key_value_heads"], config["num_key_value_heads"])]
        found = {"model.embed_tokens.weight": weights["embedding.weight"], "model.norm.weight": weights["final_norm.gain"]}
        if "lm_head.weight" in weights:
            found["lm_head.weight"] = weights["lm_head.weight"]
        for name, tensor in weights.items():
            if not name.startswith("stack.blocks."):
                continue
            layer, _, part = name.removeprefix("stack.blocks.").partition(".")
            theirs, kind = f"model.layers.{layer}.", part.rpartition(".")[2]
            if part.startswith("attention.qkv."):
                found |= {f"{theirs}self_attn.{x}_proj.{kind}": piece for x, piece in zip("qkv", tensor.split(rows), strict=True)}
            elif part.startswith("feedforward.hidden."):
                found |= {f"{theirs}mlp.{x}_proj.{kind}": piece for x, piece in zip(("gate", "up"), tensor.chunk(2), strict=True)}
            elif part == "attention.out.bias" and config["model_type"] == "qwen2":
                continue
            else:
                found[theirs + _LLAMA_NAMES[part]] = tensor
        return found


_LLAMA_NAMES = {
    "attention_norm.gain": "input_layernorm.weight",
    "feedforward_norm.gain": "post_attention_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.out.bias": "self_attn.o_proj.bias",
    "attention.q_norm.gain": "self_attn.q_norm.weight",
    "attention.k_norm.gain": "self_attn.k_norm.weight",
    "feedforward.out.weight": "mlp.down_proj.weight",
    "feedforward.out.bias": "mlp.down_proj.bias",
}


class Gpt2:
    """GPT-2: learned positions, layer norms, biases, the tanh form of gelu."""

    model_types = ("gpt2",)
    ignored = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored by old versions
    prefix = "transformer."

    @staticmethod
    def architecture(config: Options) -> Options:
        activation = config.get("activation_function", "gelu_new")
        _refuse(config, "activation_function", activation in (*TANH_GELU, "relu"), "activations other than the tanh form of gelu, and relu")
        _refuse(config, "scale_attn_weights", config.get("scale_attn_weights", True), "unscaled attention")
        _refuse(config, "scale_attn_by_inverse_layer_idx", not config.get("scale_attn_by_inverse_layer_idx"), "attention scaled by layer")
        return {
            "num_layers": config["n_layer"],
            "d_model": config["n_embd"],
            "num_heads": config["n_head"],
            "head_dim": config["n_embd"] // config["n_head"],
            "attention": {"name": "mha", "bias": True},
            "feedforward": {
                "name": "relu" if activation == "relu" else "gelu",
                "intermediate_size": config.get("n_inner") or 4 * config["n_embd"],
                "bias": True,
            },
            "norm": {"name": "layernorm", "eps": config.get("layer_norm_epsilon", 1e-5), "bias": True},
            "position": "learned",
            "lm_head": "tied" if config.get("tie_word_embeddings", True) else "linear",
        }

    @staticmethod
    def seq_len(config: Options) -> int:
        return int(config.get("n_positions") or config.get("n_ctx") or 1024)

    @staticmethod
    def to_feeb(config: Options, options: Options, take: Take) -> dict[str, Tensor]:
        found = {"embedding.weight": take("transformer.wte.weight"), "position.table.weight": take("transformer.wpe.weight")}
        found |= {"final_norm.gain": take("transformer.ln_f.weight"), "final_norm.shift": take("transformer.ln_f.bias")}
        if options["lm_head"] == "linear":
            found["lm_head.weight"] = take("lm_head.weight")
        for layer in range(options["num_layers"]):
            for ours, theirs in _GPT2_NAMES.items():
                tensor = take(f"transformer.h.{layer}.{theirs}")
                found[f"stack.blocks.{layer}.{ours}"] = tensor.T if tensor.ndim == 2 else tensor
        return found

    @staticmethod
    def config(options: Options, vocab_size: int, seq_len: int, weights: dict[str, Tensor]) -> Options:
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": vocab_size,
            "n_positions": seq_len,
            "n_embd": options["d_model"],
            "n_layer": options["num_layers"],
            "n_head": options["num_heads"],
            "n_inner": options["feedforward"]["intermediate_size"],
            "activation_function": "relu" if options["feedforward"]["name"] == "relu" else "gelu_new",
            "layer_norm_epsilon": options["norm"].get("eps", 1e-5),
            "tie_word_embeddings": options["lm_head"]["name"] == "tied",
        }

    @staticmethod
    def from_feeb(options: Options, config: Options, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {"transformer.wte.weight": weights["embedding.weight"], "transformer.wpe.weight": weights["position.table.weight"]}
        found |= {"transformer.ln_f.weight": weights["final_norm.gain"], "transformer.ln_f.bias": weights["final_norm.shift"]}
        if "lm_head.weight" in weights:
            found["lm_head.weight"] = weights["lm_head.weight"]
        for name, tensor in weights.items():
            if name.startswith("stack.blocks."):
                layer, _, part = name.removeprefix("stack.blocks.").partition(".")
                found[f"transformer.h.{layer}.{_GPT2_NAMES[part]}"] = tensor.T if tensor.ndim == 2 else tensor
        return found


_GPT2_NAMES = {
    "attention_norm.gain": "ln_1.weight",
    "attention_norm.shift": "ln_1.bias",
    "attention.qkv.weight": "attn.c_attn.weight",
    "attention.qkv.bias": "attn.c_attn.bias",
    "attention.out.weight": "attn.c_proj.weight",
    "attention.out.bias": "attn.c_proj.bias",
    "feedforward_norm.gain": "ln_2.weight",
    "feedforward_norm.shift": "ln_2.bias",
    "feedforward.hidden.weight": "mlp.c_fc.weight",
    "feedforward.hidden.bias": "mlp.c_fc.bias",
    "feedforward.out.weight": "mlp.c_proj.weight",
    "feedforward.out.bias": "mlp.c_proj.bias",
}

Family = Llama | Gpt2
FAMILIES: tuple[type[Llama] | type[Gpt2], ...] = (Llama, Gpt2)


def family_of(model_type: str) -> type[Llama] | type[Gpt2]:
    """The family of a config.json's model_type. Raises DataError."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise DataError(f"model_type {model_type!r} cannot be imported; known: {known}")


def check_config(config: Any, origin: str) -> Options:
    """The config.json itself, where what is read of it has the right types. Raises DataError that names the key."""
    if not isinstance(config, dict):
        raise DataError(f"{origin} holds {type(config).__name__}, not an object of settings")
    for keys, fits, what in (
        (WHOLE, lambda v: type(v) is int and 0 < v <= LARGEST, f"a whole number from 1 to {LARGEST:,}"),
        (REAL, lambda v: type(v) in (int, float) and 0 < v < float("inf"), "a number above 0"),
        (FLAGS, lambda v: type(v) is bool, "true or false"),
        (WORDS, lambda v: type(v) is str, "a word"),
        (OBJECTS, lambda v: type(v) is dict, "an object of settings"),
        (LISTS, lambda v: type(v) is list, "a list"),
    ):
        for key in keys:
            if config.get(key) is not None and not fits(config[key]):  # null: the library's default
                raise DataError(f"{origin}: {key} is {str(config[key])[:60]!r}, not {what}")
    return {key: value for key, value in config.items() if value is not None or key in ("sliding_window", "bos_token_id", "eos_token_id")}


LARGEST = 1 << 28
WHOLE: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
WHOLE += ("max_position_embeddings", "sliding_window", "n_layer", "n_embd", "n_head", "n_inner", "n_positions", "n_ctx")
REAL = ("rms_norm_eps", "layer_norm_epsilon", "rope_theta", "partial_rotary_factor")
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "scale_attn_weights", "scale_attn_by_inverse_layer_idx")
WORDS = ("model_type", "hidden_act", "activation_function")
OBJECTS = ("rope_parameters", "rope_scaling", "quantization_config")
LISTS = ("layer_types",)


def _rope(config: Options) -> tuple[str, float]:
    """(kind, base) of the rotary positions. They may be said in three places, which must not contradict one another, and by kind
    of layer, which no family here has."""
    said: dict[str, dict[str, Any]] = {}
    for place in ("rope_parameters", "rope_scaling"):
        values = config.get(place) or {}
        _refuse(config, place, not any(isinstance(value, dict) for value in values.values()), "rotary positions by kind of layer")
        for key, value in values.items():
            said.setdefault("rope_type" if key == "type" else key, {})[f"{place}.{key}"] = value
    for key in ("rope_theta", "partial_rotary_factor"):
        if config.get(key) is not None:
            said.setdefault(key, {})[key] = config[key]
    chosen = {}
    for key, values in said.items():
        known = {place: value for place, value in values.items() if value is not None}
        if len({repr(float(v)) if isinstance(v, int | float) else repr(v) for v in known.values()}) > 1:
            raise DataError(f"the model says {' and '.join(f'{place} = {value!r}' for place, value in known.items())}; which one holds cannot be known")
        chosen[key] = next(iter(known.values()), None)
    factor, base = chosen.get("partial_rotary_factor"), chosen.get("rope_theta", 10_000.0)
    _refuse({"partial_rotary_factor": factor}, "partial_rotary_factor", factor in (None, 1), "partial rotation")
    base = 10_000.0 if base is None else base
    _refuse({"rope_theta": base}, "rope_theta", isinstance(base, int | float) and 0 < base < float("inf"), "such a base")
    return str(chosen.get("rope_type") or "default"), float(base)


def _slides(config: Options) -> bool:
    if any(kind != "full_attention" for kind in config.get("layer_types", ())) and (config.get("sliding_window") or 0) < Llama.seq_len(config):
        return True
    window = config.get("sliding_window", 4096)
    used = config.get("use_sliding_window", config["model_type"] == "mistral")
    return bool(used and window and window < Llama.seq_len(config))


def _refuse(config: Options, key: str, fine: Any, what: str) -> None:
    if not fine:
        raise DataError(f"the model says {key} = {config.get(key)!r}: {what} cannot be imported")
