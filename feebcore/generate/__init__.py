"""Decoding: `engine.generate` completes batches of prompts; logits processors and samplers are parts."""
