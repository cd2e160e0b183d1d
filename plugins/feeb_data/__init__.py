"""Built-in parts of the data pipeline: sources, filters, tokenizers, packings, orders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

import feebcore as feeb


class StdlibConfig(feeb.PartConfig):
    """Every .py file of this Python's standard library, its tests included, in place."""

    version: str = Field("", description="Python version whose library is meant; filled in with this one's, so that another Python makes other data")

    @field_validator("version")
    @classmethod
    def _this_python(cls, value: str) -> str:
        import platform

        here = platform.python_version()
        if value not in ("", here):
            raise ValueError(f"the recipe wants the standard library of Python {value}, this is {here}; run it with that Python or leave the key out")
        return here


class TextOptions(feeb.PartConfig):
    """How files become documents. .jsonl and .parquet: one document a row; other files: one a file, or a part."""

    source_name: str = Field("", description="name of this source in the data; default: the part's name")
    text_column: str = Field("text", description="column or key that holds the text of .parquet and .jsonl rows")
    separator: str = Field("", description="text between documents in plain text files, as '<|endoftext|>'; empty: a file is a document")


class FilesConfig(TextOptions):
    """Local files: text, .jsonl or .parquet."""

    example: ClassVar[dict[str, Any]] = {"paths": [str(Path(__file__).parent / "f*.py")]}

    paths: feeb.Execution[list[str]] = Field(description="files, folders or globs, relative to the recipe", min_length=1)
    content: str = Field("", description="digest of names and contents; filled in, so that changed files make other data")

    @field_validator("paths")
    @classmethod
    def _absolute(cls, value: list[str], info: ValidationInfo) -> list[str]:
        folder = Path((info.context or {}).get("recipe_folder", "."))
        return [str((folder / Path(p).expanduser()).absolute()) for p in value]

    @model_validator(mode="after")
    def _digested(self) -> FilesConfig:
        from feeb_data.files import digest_files

        object.__setattr__(self, "content", digest_files(self.paths))
        return self


class Download(BaseModel):
    """One URL. sha256: of the file, checked after the download; strongly advised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")

    @field_validator("url")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if "@" in value.split("/")[2]:
            raise ValueError(
                "a recipe is stored with every run, so a URL in it may not hold a user name or password; fetch the file yourself and use source files"
            )
        return value


class UrlsConfig(TextOptions):
    """Files from the web, resumed and verified; .zip and .tar archives are unpacked."""

    urls: list[Download] = Field(min_length=1)
    retries: feeb.Execution[int] = Field(8, ge=0, description="failures in a row, with no byte of progress, before giving up")
    timeout: feeb.Execution[float] = Field(30.0, gt=0, description="seconds without a byte before a request counts as failed")


class HuggingfaceConfig(TextOptions):
    """Files of a dataset repository on the Hugging Face Hub, at one commit. A token is taken from HF_TOKEN and sent to the
    Hub, or to the address in HF_ENDPOINT, never to one that only the recipe names."""

    repo: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="as 'roneneldan/TinyStories'")
    revision: str = Field(min_length=1, description="full commit hash; a branch or tag is resolved at the first download and recorded")
    files: list[str] = Field(["*.parquet"], min_length=1, description="patterns over the paths in the repository; '*' matches '/' too")
    endpoint: feeb.Execution[str] = Field("", description="address of the Hub; default: HF_ENDPOINT, else https://huggingface.co")
    retries: feeb.Execution[int] = Field(8, ge=0)
    timeout: feeb.Execution[float] = Field(30.0, gt=0)

    @field_validator("revision")
    @classmethod
    def _no_short_hash(cls, value: str) -> str:
        if re.fullmatch(r"[0-9a-f]{7,39}", value):
            raise ValueError(f"{value!r} looks like a shortened commit hash; write all 40 digits")
        return value


class PackageConfig(TextOptions):
    """Text files inside an installed Python package."""

    example: ClassVar[dict[str, Any]] = {"package": "pluggy"}

    package: str = Field(description="import name, as 'numpy'")
    files: list[str] = Field(["**/*.py"], min_length=1, description="globs relative to the package's folder")
    version: str = Field("", description="version that is meant; filled in with the installed one")

    @model_validator(mode="after")
    def _installed(self) -> PackageConfig:
        from feeb_data.package import installed_version

        here = installed_version(self.package)
        if self.version not in ("", here):
            raise ValueError(f"the recipe wants {self.package} {self.version}, {here} is installed; install that version or leave the key out")
        object.__setattr__(self, "version", here)
        return self


class LengthConfig(feeb.PartConfig):
    """Bounds on a document's size; a bound that is not given does not apply."""

    min_bytes: int = Field(1, ge=0)
    max_bytes: int | None = Field(None, ge=1)
    min_chars: int = Field(0, ge=0)
    max_chars: int | None = Field(None, ge=1)


class DedupExactConfig(feeb.PartConfig):
    """What counts as the same text."""

    normalize: Literal["none", "whitespace", "lower"] = Field("whitespace", description="'whitespace' folds runs of it; 'lower' also folds case")


class QualityConfig(feeb.PartConfig):
    """Thresholds; a document outside any of them is dropped. None: only recorded."""

    min_alpha_ratio: float | None = Field(None, ge=0, le=1, description="letters per character")
    max_mean_line_length: float | None = Field(None, gt=0, description="characters")
    max_line_length: int | None = Field(None, gt=0, description="characters of the longest line")
    max_repeated_lines: float | None = Field(None, ge=0, le=1, description="share of non-blank lines that stand earlier in the document")


class DedupMinhashConfig(feeb.PartConfig):
    """What counts as nearly the same text: Jaccard similarity of the sets of word n-grams, case and punctuation aside."""

    threshold: float = Field(0.7, gt=0, le=1, description="estimated similarity from which two documents are near duplicates")
    ngram: int = Field(5, ge=1, description="words of a shingle")
    bands: int = Field(14, ge=1, description="with rows: pairs that agree in all rows of some band are compared; similar at s with chance 1-(1-s^rows)^bands")
    rows: int = Field(8, ge=1, description="hashes of a band")
    seed: int = Field(0, ge=0, description="of the hash functions")


class ByteConfig(feeb.PartConfig):
    """No options."""


class CharConfig(feeb.PartConfig):
    """Which characters get an id; others are encoded as bytes."""

    min_frequency: int = Field(1, ge=1)
    max_characters: int = Field(4096, ge=1)


class BpeConfig(feeb.PartConfig):
    """Byte-level BPE."""

    vocab_size: int = Field(4096, ge=258, le=2**24, description="all ids, BOS and EOS included")
    digits: Literal["single", "group"] = Field("single", description="'single': each digit a token; 'group': up to three may join")
    min_frequency: int = Field(2, ge=1, description="how often a pair must occur to be merged")
    sample_chars: int = Field(200_000_000, ge=0, description="characters learned from, spread over the documents; 0: all")
    max_document_chars: int = Field(1_000_000, ge=1, description="characters of one document that are learned from")
    trainer: Literal["huggingface", "rustbpe"] = Field("huggingface", description="library that learns; rustbpe is faster and merges pairs however rare")

    @model_validator(mode="after")
    def _rustbpe_counts_no_minimum(self) -> BpeConfig:
        if self.trainer == "rustbpe" and self.min_frequency != 1:
            if "min_frequency" in self.model_fields_set:
                raise ValueError(f"min_frequency {self.min_frequency} needs trainer huggingface: rustbpe merges pairs however rare; leave the key out")
            object.__setattr__(self, "min_frequency", 1)
        return self


class UnigramConfig(feeb.PartConfig):
    """Unigram language model over pieces of bytes."""

    vocab_size: int = Field(4096, ge=259, le=2**20, description="all ids, BOS and EOS included")
    digits: Literal["single", "group"] = Field("single", description="'single': each digit a token; 'group': up to three may join")
    max_piece: int = Field(16, ge=1, le=64, description="bytes of the longest piece")
    sample_chars: int = Field(50_000_000, ge=0, description="characters learned from, spread over the documents; 0: all")
    max_document_chars: int = Field(1_000_000, ge=1, description="characters of one document that are learned from")


class TrieConfig(feeb.PartConfig):
    """Pieces for greedy longest match."""

    vocab_size: int = Field(4096, ge=258, le=2**20, description="all ids, bytes, characters, BOS and EOS included")
    max_piece: int = Field(16, ge=2, le=64, description="characters of the longest piece")
    min_frequency: int = Field(2, ge=1, description="how often a piece must be used")
    sample_chars: int = Field(50_000_000, ge=0, description="characters learned from, from the first document on; 0: all")


class ConcatConfig(feeb.PartConfig):
    """How sequences treat document boundaries."""

    document_mask: bool = Field(False, description="tokens see only their own document, and no target lies across a boundary")


class BestfitConfig(feeb.PartConfig):
    """How sequences treat document boundaries. No target lies across one in any case."""

    document_mask: bool = Field(False, description="tokens see only their own document")


class BosAlignedConfig(feeb.PartConfig):
    """How documents are chosen. No target lies across a boundary in any case."""

    document_mask: bool = Field(False, description="tokens see only their own document")
    buffer: int = Field(1000, ge=1, description="documents to choose from; more: less is cropped away")


class ShuffledConfig(feeb.PartConfig):
    """No options."""


Proportions = dict[str, float]


class Phase(BaseModel):
    """Proportions from some moment of the run on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    begin: float | None = Field(None, gt=0, lt=1, description="share of the run after which the phase begins, as 0.8")
    begin_step: int | None = Field(None, ge=1, description="the same in steps, where the run's length may change later")
    proportions: Proportions

    @field_validator("proportions")
    @classmethod
    def _positive(cls, value: Proportions) -> Proportions:
        return _checked(value)

    @model_validator(mode="after")
    def _begins_once(self) -> Phase:
        if (self.begin is None) == (self.begin_step is None):
            raise ValueError("begin and begin_step: give one of them")
        return self


def _checked(value: Proportions) -> Proportions:
    if not value or min(value.values()) < 0 or sum(value.values()) <= 0:
        raise ValueError("weights of sources, none negative, not all 0, as {web: 7, code: 3}")
    return value


class MixtureConfig(feeb.PartConfig):
    """Proportions of the samples that each source gets; sources that are not named get none."""

    by_source: ClassVar[bool] = True  # sequences are wanted that hold one source each
    repeats: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"proportions": {"a": 0.75, "b": 0.25}}

    proportions: Proportions = Field(description="weight of each source by its name in the data, as {web: 7, code: 3}")
    phases: list[Phase] = Field([], description="other proportions later in the run, in order")

    @field_validator("proportions")
    @classmethod
    def _positive(cls, value: Proportions) -> Proportions:
        return _checked(value)

    def check_run(self, max_steps: int) -> list[str]:
        problems, last = [], 0
        for i, phase in enumerate(self.phases):
            step = phase.begin_step if phase.begin_step is not None else round((phase.begin or 0.0) * max_steps)
            if step <= last:
                problems.append(f"phases.{i}: it begins at step {step}, not after the phase before it; list phases in the order of the run")
            elif step >= max_steps:
                problems.append(f"phases.{i}: it would begin at step {step}, but the run ends after {max_steps}")
            last = step
        return problems

    def source_names(self) -> list[str]:
        """Every source that is named anywhere."""
        return list(dict.fromkeys(name for weights in (self.proportions, *(p.proportions for p in self.phases)) for name in weights))


class CurriculumConfig(feeb.PartConfig):
    """What is easy, and how soon the rest comes."""

    repeats: ClassVar[bool] = True

    difficulty: Literal["length", "unigram", "compression"] = Field(
        "unigram", description="of a sequence: tokens per document, nats per token by frequency, or bytes per token after zlib"
    )
    pacing: Literal["linear", "root", "quadratic", "exponential"] = Field("linear", description="how the share of sequences grows")
    start: float = Field(0.2, gt=0, le=1, description="share of the sequences, the easiest, that the run begins with")
    until: float = Field(0.5, gt=0, le=1, description="share of the run after which all sequences are there")
    stages: int = Field(20, ge=1, description="steps in which the share grows")


class RepeatBatchesConfig(feeb.PartConfig):
    """How often each batch comes, and where the batches come from."""

    repeats: ClassVar[bool] = True

    times: int = Field(2, ge=1, description="times in a row that each batch is used")
    data_order: Annotated[feeb.Part, feeb.PartKey("data_orders")] = Field(feeb.default_part("shuffled"), description="order of the batches themselves")

    @property
    def by_source(self) -> bool:
        return bool(getattr(self.data_order.config, "by_source", False))

    def check_run(self, max_steps: int) -> list[str]:
        inner = getattr(self.data_order.config, "check_run", None)
        return [f"data_order.{text}" for text in inner(-(-max_steps // self.times))] if inner else []

    def source_names(self) -> list[str]:
        inner = getattr(self.data_order.config, "source_names", None)
        return inner() if inner else []


@feeb.hookimpl
def feeb_sources() -> Iterable[feeb.SourceSpec]:
    yield feeb.SourceSpec("stdlib", StdlibConfig, build="feeb_data.stdlib:build", summary="The Python standard library's own source, about 30 MB.")
    yield feeb.SourceSpec("files", FilesConfig, build="feeb_data.files:build", summary="Local text, JSONL or Parquet files.")
    yield feeb.SourceSpec("urls", UrlsConfig, build="feeb_data.urls:build", summary="Files from the web, resumed and verified.")
    yield feeb.SourceSpec(
        "huggingface",
        HuggingfaceConfig,
        build="feeb_data.huggingface:build",
        summary="A dataset on the Hugging Face Hub at one commit.",
        reference="https://huggingface.co/docs/hub/api",
    )
    yield feeb.SourceSpec("package", PackageConfig, build="feeb_data.package:build", summary="Text files inside an installed Python package.")


@feeb.hookimpl
def feeb_filters() -> Iterable[feeb.FilterSpec]:
    yield feeb.FilterSpec("length", LengthConfig, build="feeb_data.filters:build_length", summary="Keeps documents within bounds of bytes or characters.")
    yield feeb.FilterSpec("dedup_exact", DedupExactConfig, build="feeb_data.filters:build_dedup_exact", summary="Keeps the first of equal texts.")
    yield feeb.FilterSpec(
        "dedup_minhash",
        DedupMinhashConfig,
        build="feeb_data.minhash:build",
        summary="Keeps the first of nearly equal texts.",
        reference="Broder 1997; arXiv:2107.06499",
        since="1.1",
    )
    yield feeb.FilterSpec(
        "quality_statistics",
        QualityConfig,
        build="feeb_data.filters:build_quality_statistics",
        summary="Records letter ratio, line lengths and repetition; drops outliers when told.",
        reference="arXiv:2112.11446",
    )


@feeb.hookimpl
def feeb_tokenizers() -> Iterable[feeb.TokenizerSpec]:
    yield feeb.TokenizerSpec("byte", ByteConfig, build="feeb_data.tokenizers:build_byte", summary="UTF-8 bytes: 258 ids, nothing to train.")
    yield feeb.TokenizerSpec("char", CharConfig, build="feeb_data.tokenizers:build_char", summary="An id per known character, bytes for the others.")
    yield feeb.TokenizerSpec("bpe", BpeConfig, build="feeb_data.bpe:build", summary="Byte-level byte-pair encoding.", reference="arXiv:1508.07909")
    yield feeb.TokenizerSpec(
        "unigram",
        UnigramConfig,
        build="feeb_data.unigram:build",
        summary="The most probable cut into pieces of bytes, each with a learned probability.",
        reference="arXiv:1804.10959",
        since="1.1",
    )
    yield feeb.TokenizerSpec(
        "trie",
        TrieConfig,
        build="feeb_data.trie:build",
        summary="Greedy longest match over learned pieces; characters and bytes for the rest.",
        reference="arXiv:2012.15524",
        since="1.1",
    )


@feeb.hookimpl
def feeb_packings() -> Iterable[feeb.PackingSpec]:
    yield feeb.PackingSpec(
        "concat", ConcatConfig, build="feeb_data.packings:build_concat", summary="One stream of tokens cut into equal sequences; nothing is lost."
    )
    yield feeb.PackingSpec(
        "bestfit",
        BestfitConfig,
        build="feeb_data.bestfit:build",
        summary="Documents stay whole where they fit, packed tightly; nothing is lost.",
        reference="arXiv:2404.10830",
        since="1.1",
    )
    yield feeb.PackingSpec(
        "bos_aligned",
        BosAlignedConfig,
        build="feeb_data.bos_aligned:build",
        summary="Every sequence begins with a document and is full; the rest of cut documents is lost.",
        reference="https://github.com/karpathy/nanochat",
        since="1.1",
    )


@feeb.hookimpl
def feeb_data_orders() -> Iterable[feeb.DataOrderSpec]:
    yield feeb.DataOrderSpec(
        "shuffled",
        ShuffledConfig,
        build="feeb_data.data_orders:build_shuffled",
        summary="A new permutation each epoch, computed per index (Feistel network).",
        reference="Black & Rogaway 2002",
    )
    yield feeb.DataOrderSpec(
        "mixture",
        MixtureConfig,
        build="feeb_data.mixture:build",
        summary="Sources in fixed proportions that may change in phases of the run.",
        reference="arXiv:2305.10429",
        since="1.1",
    )
    yield feeb.DataOrderSpec(
        "curriculum",
        CurriculumConfig,
        build="feeb_data.curriculum:build",
        summary="Easy sequences first; a pacing function lets the harder ones in.",
        reference="arXiv:2012.03107",
        since="1.1",
    )
    yield feeb.DataOrderSpec(
        "repeat_batches",
        RepeatBatchesConfig,
        build="feeb_data.data_orders:build_repeat_batches",
        summary="Each batch of another order several times in a row.",
        since="1.1",
    )
