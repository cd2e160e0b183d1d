"""Output (LM) heads: a folder per part or family."""
