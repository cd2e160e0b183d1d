"""Position encodings: a folder per part or family."""
