"""Built-in evaluation parts, a folder each: benchmarks, planners of sweeps, scaling laws."""

from __future__ import annotations

import feebcore as feeb

feeb_benchmarks = feeb.collect(f"{__name__}.benchmarks", feeb.BenchmarkSpec)
feeb_planners = feeb.collect(f"{__name__}.planners", feeb.PlannerSpec)
feeb_laws = feeb.collect(f"{__name__}.laws", feeb.LawSpec)
