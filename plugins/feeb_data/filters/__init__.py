"""Filters of documents: a folder each. Polars LazyFrame to LazyFrame on columns text, source, key, num_bytes; rows keep their order, and
numeric columns that a filter adds are summarized in statistics.json."""
