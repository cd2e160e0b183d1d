"""Scaling laws: a folder each."""
