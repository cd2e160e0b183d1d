"""Built-in reinforcement learning: algorithms and tasks, a folder each."""

from __future__ import annotations

import feebcore as feeb

feeb_algorithms = feeb.collect(f"{__name__}.algorithms", feeb.AlgorithmSpec)
feeb_tasks = feeb.collect(f"{__name__}.tasks", feeb.TaskSpec)
