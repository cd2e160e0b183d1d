"""Scaling laws: what a sweep measured (points), fits of functional forms (fit), isoFLOP minima (isoflop)."""
