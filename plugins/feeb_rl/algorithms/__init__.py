"""Algorithms: a folder each. What they share: policy_config.py (options) and policy_gradient.py (the clipped loss)."""
