"""Residual blocks: a folder per part or family."""
