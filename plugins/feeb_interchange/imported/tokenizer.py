"""Tokenizer `imported`: the codec of another model, as its tokenizer.json has it.

Text is text: the file's special tokens are never made of text, so that `<|im_end|>` in a document becomes the
characters it is made of; only BOS and EOS, named in the options, are ever added, by feeb. Added tokens that are not special, as runs
of spaces, are ordinary text and stay. Ids are otherwise those of the other library, its normalization included: a codec that changes
text (NFC in Qwen, for one) changes it here too. What is for training (BPE dropout, truncation, padding) is left out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.data.tokenizers import PART_FILE, save_part
from feebcore.errors import DataError
from feebcore.files import read_json, write_atomic, write_json
from feebcore.parts import resolve_part
from feebcore.protocols import BuildContext, ProgressFn, Tokenizer, TokenizerTrainer

if TYPE_CHECKING:
    from feeb_interchange.imported import ImportedTokenizerConfig

FILE = "tokenizer.json"
OWN_BPE = "bpe"  # feeb's own tokenizer that keeps a tokenizer.json, with BOS and EOS after its vocabulary


PROBES = ("a word", "\u00e9\u4e2d\U0001f600\u200b\x00", "")
FOR_TRAINING = ("dropout", "alpha", "nbest_size")  # of a codec's model: they draw another encoding of the same text each time


def read_codec(text: str, origin: str) -> dict[str, Any]:
    """A tokenizer.json, its parts looked at as far as they are used here. Raises DataError."""
    try:
        codec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin} is not JSON ({error}); download it again") from None
    model = codec.get("model") if isinstance(codec, dict) else None
    if not isinstance(model, dict):
        raise DataError(f"{origin} is not a tokenizer: it has no object 'model'")
    added = codec.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(t, dict) and type(t.get("id")) is int and isinstance(t.get("content"), str) for t in added):
        raise DataError(f"{origin}: added_tokens must be a list of objects with id and content")
    vocab = model.get("vocab", {})
    if not isinstance(vocab, dict | list) or (isinstance(vocab, list) and not all(isinstance(entry, list) and entry for entry in vocab)):
        raise DataError(f"{origin}: model.vocab is neither an object nor a list of pairs")
    return codec


def codec_text(path: Path) -> str:
    """What a tokenizer.json holds. Raises DataError when it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); download it again") from None


def training_settings(codec: dict[str, Any]) -> list[str]:
    """Those settings of a codec that make ids something else than a function of the text, or cut it, as 'model.dropout = 0.3'."""
    found = [f"model.{key} = {codec['model'][key]}" for key in FOR_TRAINING if codec["model"].get(key)]
    return found + [key for key in ("truncation", "padding") if codec.get(key)]


def _plain(codec: dict[str, Any]) -> dict[str, Any]:
    """The codec for text: nothing is added, cut or drawn at random. Special tokens get names that no text can hold, so that not even
    a model that has them in its own vocabulary makes one out of text; added tokens that are ordinary text stay."""
    names = {t["content"]: f"\U0010fffe{t['id']}\U0010fffe" for t in codec.get("added_tokens") or () if t.get("special")}
    model = codec["model"] | dict.fromkeys((key for key in FOR_TRAINING if key in codec["model"]), None)
    unknown = model.get("unk_token")
    vocab = model.get("vocab", {})
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocab.items()}
    else:
        model["vocab"] = [[names.get(entry[0], entry[0]), *entry[1:]] if isinstance(entry[0], str) else entry for entry in vocab]
    if isinstance(unknown, str):
        model["unk_token"] = names.get(unknown, unknown)
    added = [t | {"content": names.get(t["content"], t["content"])} for t in codec.get("added_tokens") or ()]
    return codec | {"model": model, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}


def _loaded(codec: dict[str, Any], origin: str) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(codec))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust library raises bare Exception, and BaseException where it panics
        raise DataError(f"{origin} is not a tokenizer ({error})") from None


def _check_ids(codec: dict[str, Any], decoder: Any, origin: str) -> None:
    """Raises DataError where two tokens have one id: which of them it means cannot be known, and the library numbers added ones anew."""
    vocab = codec["model"].get("vocab", {})
    seen: dict[int, str] = {}
    for token, number in vocab.items() if isinstance(vocab, dict) else ():
        if (other := seen.setdefault(number, token)) != token:
            raise DataError(f"{origin}: tokens {other!r} and {token!r} both have id {number}; the file is damaged")
    for token, number in ((t["content"], t["id"]) for t in codec.get("added_tokens") or ()):
        if decoder.token_to_id(token) != number:
            raise DataError(f"{origin}: added token {token!r} has id {number}, which is that of {decoder.id_to_token(number)!r}; the file is damaged")


class ImportedTokenizer(Tokenizer):
    """bos_id and eos_id may be the same token, as in GPT-2."""

    encodes_in_threads = True

    def __init__(self, text: str, bos: str, eos: str, num_ids: int, origin: str) -> None:
        codec = read_codec(text, origin)
        self._encoder, self._decoder = _loaded(_plain(codec), origin), _loaded(codec | {"padding": None, "truncation": None}, origin)
        self._encoder.encode_special_tokens = True
        _check_ids(codec, self._decoder, origin)
        self.vocab_size = max(num_ids, 1 + max(self._decoder.get_vocab(with_added_tokens=True).values(), default=-1))
        self.bos_id, self.eos_id = (self._id(token, origin) for token in (bos, eos))
        self._silent = {self.bos_id, self.eos_id}
        try:
            self.encode_batch(PROBES)
        except Exception as error:  # the Rust library raises bare Exception
            raise DataError(f"{origin} cannot encode every text ({error})") from error

    def _id(self, token: str, origin: str) -> int:
        found = self._decoder.token_to_id(token)
        if found is None:
            raise DataError(f"{origin} has no token {token!r}; set bos and eos to tokens of its vocabulary")
        return found

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int32 [n], no special ids. Raises UnicodeEncodeError for a lone surrogate."""
        for text in texts:
            if not text.isascii():
                text.encode()
        return [np.array(e.ids, dtype=np.int32) for e in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._decoder.decode([int(i) for i in ids if int(i) not in self._silent], skip_special_tokens=True)


class ImportedTrainer(TokenizerTrainer):
    """`train` copies the file that the options name."""

    def __init__(self, config: ImportedTokenizerConfig, context: BuildContext) -> None:
        self._config = config

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: ProgressFn) -> ImportedTokenizer:
        path = Path(self._config.path)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != self._config.content:
            raise DataError(f"{path} is gone or was changed since the recipe was read; run it again")
        shutil.copyfile(path, folder / FILE)
        return self.load(folder)

    def load(self, folder: Path) -> ImportedTokenizer:
        path, config = Path(folder) / FILE, self._config
        if not path.is_file():
            raise DataError(f"{path} is missing; make the artifact again")
        return ImportedTokenizer(codec_text(path), config.bos, config.eos, config.num_ids, str(path))


def write_codec_folder(folder: Path, text: str, bos: str, eos: str, num_ids: int, origin: str = FILE) -> None:
    """A feeb tokenizer folder from the text of a tokenizer.json. num_ids: of the model. Settings for training are warned of and left out.
    Raises DataError when it is no codec that can be used with the model."""
    codec = read_codec(text, origin)
    if settings := training_settings(codec):
        warnings.warn(f"{origin}: {', '.join(settings)} is for training and left out: ids are a function of the text", stacklevel=2)
    by_id = texts_by_id(codec)
    if beyond := sorted(number for number in by_id if num_ids and number >= num_ids):
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise DataError(
            f"{origin}: token {by_id[beyond[0]]!r} has id {beyond[0]}{more}, the model has a vocabulary of {num_ids} (vocab_size): "
            "the tokenizer is not this model's, or the model's embedding was not extended; take these tokens out of the file"
        )
    ImportedTokenizer(text, bos, eos, num_ids, origin)
    folder.mkdir(parents=True)
    write_atomic(folder / FILE, text)
    digest = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    save_part(folder, resolve_part("tokenizers", {"name": "feeb/imported", "bos": bos, "eos": eos, "num_ids": num_ids, "content": digest}))


def special_ids(source: Path, described: dict[str, Any]) -> tuple[str, str]:
    """BOS and EOS of a Hugging Face folder as texts: from tokenizer_config.json, else from the ids in generation_config.json or
    config.json. A missing BOS is EOS, as GPT-2 has it. Warns of further ids at which transformers ends a text."""
    settings, generation = (_settings(source / name) for name in ("tokenizer_config.json", "generation_config.json"))
    by_id = texts_by_id(read_codec(codec_text(source / FILE), str(source / FILE)))
    found, ids = {}, {}
    for name in ("bos", "eos"):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(token, str):
            raise DataError(f"{source / 'tokenizer_config.json'}: {name}_token is {token!r}, not a text")
        key = f"{name}_token_id"
        numbers: Any = next((v for v in (generation.get(key), described.get(key)) if v not in (None, [])), [])
        ids[name] = numbers if isinstance(numbers, list) else [numbers]
        if not all(type(number) is int for number in ids[name]):
            raise DataError(f"{source}: {key} is {numbers!r}, neither an id nor a list of ids")
        if not token and ids[name] and ids[name][0] not in by_id:
            raise DataError(f"{source}: {key} is {ids[name][0]}, which {FILE} does not have")
        found[name] = token or (by_id[ids[name][0]] if ids[name] else None)
    eos = found["eos"] or found["bos"]
    if eos is None:
        raise DataError(f"{source}: neither tokenizer_config.json nor config.json says which token ends a text (eos_token, eos_token_id)")
    if also := [f"{by_id.get(number, 'no token')!r} ({number})" for number in ids["eos"] if by_id.get(number) != eos]:
        warnings.warn(f"{source}: eos_token_id also lists {', '.join(also)}; here only {eos!r} ends a text", stacklevel=2)
    return found["bos"] or eos, eos


def _settings(path: Path) -> dict[str, Any]:
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise DataError(f"{path} holds {type(settings).__name__}, not an object of settings")
    return settings


def texts_by_id(codec: dict[str, Any]) -> dict[int, str]:
    vocab = codec["model"].get("vocab", {})
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    return {number: token for token, number in pairs if type(number) is int} | {t["id"]: t["content"] for t in codec.get("added_tokens") or ()}


def copy_codec(folder: Path, target: Path) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json next to an exported model, where the tokenizer has such a form. Returns
    the ids of BOS and EOS for its config.json, {} where it has none."""
    if not (folder / FILE).is_file():
        return {}
    part, codec = read_json(folder / PART_FILE), read_json(folder / FILE)
    name = part["name"].removeprefix("feeb/")
    if name == "imported":
        bos, eos = part["config"]["bos"], part["config"]["eos"]
        shutil.copyfile(folder / FILE, target / FILE)
        ids = {text: number for number, text in texts_by_id(codec).items()}
        numbers = (ids[bos], ids[eos])
    elif name == OWN_BPE:
        bos, eos = "<|bos|>", "<|eos|>"
        size = len(codec["model"]["vocab"])
        numbers = (size, size + 1)
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        codec["added_tokens"] = [{"id": number, "content": text, **special} for number, text in zip(numbers, (bos, eos), strict=True)]
        write_json(target / FILE, codec)
    else:
        return {}
    write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos})
    return {"bos_token_id": numbers[0], "eos_token_id": numbers[1]}
