"""Decoding: `engine.generate` completes batches of prompts; processors and samplers are parts."""
