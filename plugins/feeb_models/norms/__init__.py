"""Normalization over the last dimension: a folder per part."""
