"""Planners of sweeps: a folder each."""
