"""Decoding: `engine.generate` completes batches of prompts; processors and decoders are parts."""
