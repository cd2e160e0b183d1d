"""Benchmarks: a folder each."""
