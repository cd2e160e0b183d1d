"""Packings, documents to training sequences: a folder each. What bestfit and bos_aligned share: segments.py."""
