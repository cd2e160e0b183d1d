"""Text to training batches: download, documents, tokenizers, token store, order, packing, loader."""
