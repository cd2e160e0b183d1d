"""Built-in parts: evals."""

from __future__ import annotations

from feeb_evals.scaling_parts import feeb_laws, feeb_planners

__all__ = ["feeb_laws", "feeb_planners"]
