"""Tokenizers: a folder each. What they share: text_pieces.py, training.py, byte_level.py."""
