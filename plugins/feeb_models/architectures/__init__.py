"""Whole models: the transformer, and known models as choices of its parts. A folder per architecture."""
