"""Tokenizer `imported`: the codec of another model, as its tokenizer.json has it.

Text is text: the file's special tokens are taken out of the encoder, so that `<|im_end|>` in a document becomes the
characters it is made of; only BOS and EOS, named in the options, are ever added, by feeb. Ids are otherwise those
of the other library, its normalization included: a codec that changes text (NFC in Qwen, for one) changes it here too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
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


class ImportedTokenizer(Tokenizer):
    """bos_id and eos_id may be the same token, as in GPT-2."""

    encodes_in_threads = True

    def __init__(self, text: str, bos: str, eos: str, num_ids: int, origin: str) -> None:
        import tokenizers

        try:
            whole = json.loads(text)
            plain = whole | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            self._encoder, self._decoder = tokenizers.Tokenizer.from_str(json.dumps(plain)), tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the Rust library raises bare Exception
            raise DataError(f"{origin} is no tokenizer ({error})") from error
        self.vocab_size = max(num_ids, self._decoder.get_vocab_size(with_added_tokens=True))
        self.bos_id, self.eos_id = (self._id(token, origin) for token in (bos, eos))
        self._silent = {self.bos_id, self.eos_id}

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
        return ImportedTokenizer(path.read_text(encoding="utf-8"), config.bos, config.eos, config.num_ids, str(path))


def write_codec_folder(folder: Path, text: str, bos: str, eos: str, num_ids: int) -> None:
    """A feeb tokenizer folder from the text of a tokenizer.json. Raises DataError when it is no codec that can be used."""
    ImportedTokenizer(text, bos, eos, num_ids, FILE)
    folder.mkdir(parents=True)
    write_atomic(folder / FILE, text)
    digest = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    save_part(folder, resolve_part("tokenizers", {"name": "feeb/imported", "bos": bos, "eos": eos, "num_ids": num_ids, "content": digest}))


def special_ids(source: Path, described: dict[str, Any]) -> tuple[str, str]:
    """BOS and EOS of a Hugging Face folder as texts: from tokenizer_config.json, else from config.json's ids. A missing BOS
    is EOS, as GPT-2 has it."""
    settings = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    by_id = texts_by_id(json.loads((source / FILE).read_text(encoding="utf-8")))
    found = {}
    for name in ("bos", "eos"):
        token = settings.get(f"{name}_token")
        token = token["content"] if isinstance(token, dict) else token
        number = described.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) else number
        found[name] = token or (by_id.get(number) if number is not None else None)
    eos = found["eos"] or found["bos"]
    if eos is None:
        raise DataError(f"{source}: neither tokenizer_config.json nor config.json says which token ends a text (eos_token, eos_token_id)")
    return found["bos"] or eos, eos


def texts_by_id(codec: dict[str, Any]) -> dict[int, str]:
    vocab = codec["model"].get("vocab", {})
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    return {number: token for token, number in pairs} | {t["id"]: t["content"] for t in codec.get("added_tokens") or ()}


def copy_codec(folder: Path, target: Path) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json beside an exported model, where the tokenizer has such a form. Returns
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
