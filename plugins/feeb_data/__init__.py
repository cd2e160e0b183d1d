"""Built-in parts of the data pipeline: sources, filters, tokenizers, packings and data orders, a folder each."""

from __future__ import annotations

import feebcore as feeb

feeb_sources = feeb.collect(f"{__name__}.sources", feeb.SourceSpec)
feeb_filters = feeb.collect(f"{__name__}.filters", feeb.FilterSpec)
feeb_tokenizers = feeb.collect(f"{__name__}.tokenizers", feeb.TokenizerSpec)
feeb_packings = feeb.collect(f"{__name__}.packings", feeb.PackingSpec)
feeb_data_orders = feeb.collect(f"{__name__}.data_orders", feeb.DataOrderSpec)
