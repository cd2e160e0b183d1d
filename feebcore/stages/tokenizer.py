"""Stage tokenizer: trains a tokenizer on the training documents.

Output: folder `tokenizer/`, which feebcore.data.tokenizers.load_tokenizer opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import StageConfig
from feebcore.errors import DataError, Interrupted
from feebcore.parts import Part, PartKey, default_part
from feebcore.specs import Need, StageSpec

SAMPLE_BYTES = 2 << 20


class TokenizerConfig(StageConfig):
    """Which tokenizer, with its options."""

    tokenizer: Annotated[Part, PartKey("tokenizers")] = Field(default_part("bpe"), description="tokenizer part")


PART = StageSpec(
    "tokenizer",
    TokenizerConfig,
    build=f"{__name__}:run",
    needs=(Need("documents"),),
    makes=("tokenizer",),
    process="inline",
    summary="Trains a tokenizer on the training documents.",
)


def run(section: TokenizerConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    from feebcore.data.documents import read_texts
    from feebcore.data.tokenizers import save_part

    documents = inputs["documents"].file("documents.parquet")
    folder = out.path / "tokenizer"
    folder.mkdir(exist_ok=True)

    def progress(done: float, total: float) -> None:
        if out.stop_requested:
            raise Interrupted("tokenizer: stopped during training; run again to start over")
        out.progress(done, total, "characters", "train tokenizer")

    trained = section.tokenizer.build().train(lambda: read_texts(documents, "train"), folder, progress)
    if not 0 <= trained.bos_id < trained.vocab_size or not 0 <= trained.eos_id < trained.vocab_size:
        raise DataError(
            f"tokenizer {section.tokenizer.name!r}: bos_id {trained.bos_id} and eos_id {trained.eos_id} must be below vocab_size {trained.vocab_size}"
        )
    save_part(folder, section.tokenizer)
    out.content("tokenizer/*")
    sample = list(read_texts(documents, "validation", SAMPLE_BYTES)) or list(read_texts(documents, "train", SAMPLE_BYTES))
    encoded = trained.encode_batch(sample)
    num_tokens = sum(len(ids) for ids in encoded)
    exact = sum(trained.decode(ids.tolist()) == text for ids, text in zip(encoded[:50], sample, strict=False))
    return {
        "vocab_size": trained.vocab_size,
        "bytes_per_token": sum(len(text.encode()) for text in sample) / max(1, num_tokens),
        "round_trip": exact / min(50, len(sample)),
    }
