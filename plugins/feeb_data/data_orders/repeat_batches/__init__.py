"""Data order `repeat_batches`: every batch several times in a row."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

import feebcore as feeb


class RepeatBatchesConfig(feeb.DataOrderConfig):
    """How often each batch is repeated, and the data order of the batches."""

    repeats: ClassVar[bool] = True

    times: int = Field(2, ge=1, description="times in a row that each batch is used")
    data_order: Annotated[feeb.Part, feeb.PartKey("data_orders")] = Field(feeb.default_part("shuffled"), description="data order of the batches themselves")

    @property
    def inner(self) -> feeb.DataOrderConfig:
        """Options of the data order whose batches are repeated."""
        config = self.data_order.config
        assert isinstance(config, feeb.DataOrderConfig)
        return config

    @property
    def by_source(self) -> bool:  # type: ignore[override]
        return self.inner.by_source

    def check_run(self, max_steps: int) -> list[str]:
        return [f"data_order.{text}" for text in self.inner.check_run(-(-max_steps // self.times))]

    def follows_length(self) -> bool:
        return self.inner.follows_length()

    def source_names(self) -> list[str]:
        return self.inner.source_names()


PART = feeb.DataOrderSpec(
    "repeat_batches",
    RepeatBatchesConfig,
    build=f"{__name__}.repeat_batches:RepeatBatches",
    summary="Data echoing: uses each batch of another data order several times in a row.",
    reference="arXiv:1907.05550",
    since="1.1",
)
