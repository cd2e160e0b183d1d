"""The transformer that block parts plug into, and what is true of any model: building, counting, saving, its loss.

config.py says what a transformer is made of; transformer.py assembles it; context.py is what a forward pass knows
besides the stream (positions, mask, cache); parts.py holds the two base classes that block parts share.
"""
