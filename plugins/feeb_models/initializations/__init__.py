"""Initial weights: a folder per part or family."""
