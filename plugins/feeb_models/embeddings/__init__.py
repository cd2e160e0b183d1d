"""Token embeddings: a folder per part."""
