"""Hugging Face folders: config.json, safetensors (one file, or shards with an index), tokenizer.json.

No pickle is ever read: a folder that has only .bin files is refused. A name in the files that the family does not know
is an error, so is one that is missing: a model is imported whole or not at all.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from feeb_interchange.families import FAMILIES, Options, Take, check_config, family_of
from feeb_interchange.imported.tokenizer import codec_text, copy_codec, special_ids, write_codec_folder
from feebcore.errors import DataError
from feebcore.files import read_json, write_json
from feebcore.model.build import build_model
from feebcore.model.io import DESCRIPTION, TOKENIZER, WEIGHTS, save_model, set_weights
from feebcore.model.tensors import named_tensors
from feebcore.parts import Part, resolve_part

if TYPE_CHECKING:
    from feeb_interchange.huggingface import HuggingfaceExportConfig
    from feeb_interchange.options import ImportConfig
    from feebcore.protocols import BuildContext

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NOT_COMPARED = ("dropout", "initialization")  # of training, no matter to a finished model


def build_importer(config: ImportConfig, context: BuildContext) -> Callable[[Path, Path], None]:
    """`run(source, folder)`: the Hugging Face folder `source` as the feeb model folder `folder`, weights in fp32."""

    def run(source: Path, folder: Path) -> None:
        source = Path(source)
        if not (source / "config.json").is_file():
            raise DataError(f"{source} is not a Hugging Face folder: it has no config.json")
        described = check_config(read_json(source / "config.json"), str(source / "config.json"))
        files = WeightFiles(source)
        with tempfile.TemporaryDirectory() as temporary:
            codec = Path(temporary) / "tokenizer"
            has_codec = (source / "tokenizer.json").is_file()
            if has_codec:
                ids = special_ids(source, described)
                write_codec_folder(codec, codec_text(source / "tokenizer.json"), *ids, described.get("vocab_size", 0), str(source / "tokenizer.json"))
            import_model(described, files.take, files.names, str(source), config.seq_len, folder, codec if has_codec else None)

    return run


def import_model(
    described: Options,
    take: Take,
    names: set[str],
    origin: str,
    seq_len: int | None,
    folder: Path,
    codec: Path | None,
    shown: Callable[[str], str] = str,
) -> None:
    """Write a feeb model folder from a config.json and its tensors. names: of all tensors. origin: for errors. shown: a tensor's name as the
    file has it."""
    try:
        family = family_of(described.get("model_type", ""))
        options = family.architecture(described)
        architecture = transformer(options)
        longest, vocab_size = family.seq_len(described), described["vocab_size"]
    except KeyError as error:
        raise DataError(f"{origin}: the description of the model has no {error}") from None
    except ValidationError as error:
        raise DataError(f"{origin}: the description of the model is contradictory: {_first_problem(error)}") from None
    except DataError as error:
        raise DataError(f"{origin}: {error}") from None
    if seq_len is not None and seq_len > longest:
        raise DataError(f"{origin}: seq_len {seq_len} is more than the {longest} tokens that the model was made for")
    bare = not any(name.startswith(family.prefix) for name in names)
    asked: set[str] = set()
    shapes: list[str] = []

    def named(name: str) -> Tensor:
        stored = name.removeprefix(family.prefix) if bare else name
        if stored not in names:
            raise DataError(f"{origin}: there is no tensor {shown(stored)!r}")
        asked.add(stored)
        tensor = take(stored)
        if not tensor.is_floating_point():
            raise DataError(f"{origin}: tensor {shown(stored)!r} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point weights")
        if not (tensor := tensor.to(torch.float32)).isfinite().all():
            raise DataError(f"{origin}: tensor {shown(stored)!r} holds NaN or infinite values; the model is damaged")
        shapes.append(f"{shown(stored)} {tuple(tensor.shape)}")
        return tensor

    try:
        weights = family.to_feeb(described, options, named)
    except RuntimeError:  # torch: matrices to be stacked differ in width
        raise DataError(f"{origin}: the shapes of its tensors contradict one another, the last of {', '.join(shapes[-3:])}") from None
    if options["lm_head"] == "tied" and "lm_head.weight" in names:
        asked.add("lm_head.weight")
        if not torch.equal(take("lm_head.weight").to(torch.float32), weights["embedding.weight"]):
            raise DataError(
                f"{origin}: tie_word_embeddings is true, and yet lm_head.weight is there and differs from the embedding; set it to false in config.json "
                "if the model has a head of its own, or remove the tensor"
            )
    unknown = sorted(n for n in names - asked if not n.endswith(family.ignored))
    if unknown:
        raise DataError(f"{origin}: {len(unknown)} tensors that a {described['model_type']} does not have, as {unknown[0]!r}; it would not be the same model")
    if seq_len is not None and "position.table.weight" in weights:
        weights["position.table.weight"] = weights["position.table.weight"][:seq_len]
    _check_shapes(architecture, vocab_size, seq_len or longest, weights, origin)
    model = build_model(architecture, vocab_size, seq_len or longest)
    set_weights(model, weights, origin)
    save_model(folder, model, architecture, codec)


def _first_problem(error: ValidationError) -> str:
    """The first of the problems: of an option of a part, not of the part as a whole."""
    problem: Any = error.errors()[0]
    problem = problem["ctx"]["details"][0] if problem["type"] == "part_options" else problem
    return ": ".join(filter(None, [".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")]))


def _check_shapes(architecture: Part, vocab_size: int, seq_len: int, weights: dict[str, Tensor], origin: str) -> None:
    """Compare the tensors with the model that the description makes, before memory is taken for it: sizes may be anything."""
    try:
        with torch.device("meta"):
            model = architecture.build(vocab_size=vocab_size, seq_len=seq_len)
    except ValueError as error:
        raise DataError(f"{origin}: the description of the model is contradictory: {error}") from None
    tables = sum(buffer.nbytes for buffer in model.buffers())
    if tables > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 4:
        raise DataError(
            f"{origin}: its {seq_len:,} positions take {tables / 2**30:,.1f} GiB and more to build, this machine has {memory / 2**30:,.1f}; "
            "import it for shorter texts with --option seq_len=4096"
        )
    wanted = named_tensors(model)
    for name in sorted(wanted.keys() & weights.keys()):
        if wanted[name].shape != weights[name].shape:
            shape = tuple(weights[name].shape)
            raise DataError(f"{origin}: by the description of the model {name} has shape {tuple(wanted[name].shape)}, in the file it has shape {shape}")


def transformer(options: Options) -> Part:
    """feeb's transformer with these options, every one that is left out at its default."""
    return resolve_part("architectures", {"name": "transformer", **options})


class WeightFiles:
    """The tensors of a folder, read one by one. Raises DataError when there are none that can be read without pickle."""

    def __init__(self, source: Path) -> None:
        self._file_of: dict[str, Path] = {}
        if (source / INDEX).is_file():
            self._file_of = _indexed(source)
        elif (source / SINGLE).is_file():
            with _opened(source / SINGLE) as file:
                self._file_of = dict.fromkeys(file.keys(), source / SINGLE)
        else:
            pickled = sorted(p.name for p in source.glob("*.bin"))
            why = f"{', '.join(pickled)} is pickle, which can run any code and is never read; save the model with safe_serialization=True" if pickled else ""
            raise DataError(f"{source} has no {SINGLE} and no {INDEX}{'; ' + why if why else ''}")
        for path in {p for p in self._file_of.values() if not p.is_file()}:
            raise DataError(f"{source / INDEX} names {path.name}, which is not there; download it too")

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def take(self, name: str) -> Tensor:
        with _opened(self._file_of[name]) as file:
            try:
                return file.get_tensor(name)
            except SafetensorError as error:
                raise DataError(f"{self._file_of[name]} has no tensor {name!r} ({error})") from None


def _indexed(source: Path) -> dict[str, Path]:
    """{tensor: its file} by the index of a folder. The files lie in the folder itself."""
    index = read_json(source / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise DataError(f"{source / INDEX} has no weight_map, an object that says in which file each tensor is; download it again")
    if outside := sorted({file for file in names.values() if Path(file).name != file or not file.endswith(".safetensors")}):
        raise DataError(f"{source / INDEX} names {outside[0]!r}, which is no .safetensors file of this folder; this model is refused")
    return {name: source / file for name, file in names.items()}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again") from None


def build_exporter(config: HuggingfaceExportConfig, context: BuildContext) -> Callable[[Path, Path], None]:
    """`run(folder, target)`: the feeb model folder `folder` as the Hugging Face folder `target`, which must not exist or
    be empty. Raises DataError, naming the option, for a model that no known family can express."""

    def run(folder: Path, target: Path) -> None:
        folder, target = Path(folder), Path(target)
        if not (folder / DESCRIPTION).is_file():
            raise DataError(f"{folder} is not a model folder: it has no {DESCRIPTION}")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DataError(f"{target} is there already; name a folder that does not exist")
        description = read_json(folder / DESCRIPTION)
        weights = load_file(folder / WEIGHTS)
        described, tensors = translate(resolve_part("architectures", description["architecture"]), description["vocab_size"], description["seq_len"], weights)
        described["dtype"] = described["torch_dtype"] = str(DTYPES[config.dtype]).removeprefix("torch.")
        target.mkdir(parents=True, exist_ok=True)
        save_file({name: t.to(DTYPES[config.dtype]).contiguous() for name, t in tensors.items()}, target / SINGLE, metadata={"format": "pt"})
        described |= copy_codec(folder / TOKENIZER, target)
        write_json(target / "config.json", described)

    return run


def translate(architecture: Part, vocab_size: int, seq_len: int, weights: dict[str, Tensor]) -> tuple[Options, dict[str, Tensor]]:
    """config.json and tensors of the first family that expresses exactly this model: translated back, its description
    gives the same parts and options."""
    wanted = _comparable(architecture.dump(), weights)
    problems = []
    for family in FAMILIES:
        try:
            described = family.config(wanted, vocab_size, seq_len, weights)
            back = _comparable(transformer(family.architecture(described)).dump(), weights)
        except (KeyError, ValidationError, DataError):
            problems.append(f"{family.model_types[0]}: it has other parts")
            continue
        different = _differences(wanted, back)
        if not different:
            return described, family.from_feeb(wanted, described, weights)
        problems.append(f"{family.model_types[0]}: {', '.join(different[:3])}{' …' if len(different) > 3 else ''}")
    raise DataError(f"no known family of models has these parts and options ({'; '.join(problems)})")


def _comparable(options: Options, weights: dict[str, Tensor]) -> Options:
    """Options with what follows from others written out: head_dim, the hidden width, multi-head attention as grouped."""
    known = set(transformer({}).config.model_fields) - set(NOT_COMPARED)
    found = json.loads(json.dumps({key: value for key, value in options.items() if key in known}))
    found["head_dim"] = found["head_dim"] or found["d_model"] // found["num_heads"]
    if found["attention"]["name"] == "mha":
        found["attention"] |= {"name": "gqa", "num_kv_heads": found["num_heads"]}
    out = weights.get("stack.blocks.0.feedforward.out.weight")
    if "expansion_ratio" in found["feedforward"] and out is not None:
        found["feedforward"] |= {"expansion_ratio": None, "intermediate_size": out.shape[1]}
    return found


def _differences(wanted: Options, back: Options, where: str = "") -> list[str]:
    found: list[str] = []
    for key in wanted.keys() | back.keys():
        a, b = wanted.get(key), back.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and a.get("name") == b.get("name"):
            found += _differences(a, b, f"{where}{key}.")
        elif a != b:
            found.append(f"{where}{key} is {_short(a)}, not {_short(b)}")
    return sorted(found)


def _short(value: Any) -> str:
    return value["name"] if isinstance(value, dict) and "name" in value else json.dumps(value)
