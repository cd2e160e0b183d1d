"""How evenly a router spreads tokens over its experts: a router that sends all to a few leaves the others untrained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from feeb_tracking import ProbeConfig
from feeb_tracking.probe import Probe
from feebcore.model.parts import FeedforwardPart
from feebcore.protocols import Batch
from feebcore.train.callbacks import Callback, RunContext
from feebcore.train.probing import first_windows, forward, layer_of, looking


class ExpertLoad(Probe):
    """A row has `layers`, one entry a layer with experts: layer, its name; shares [E]: of the tokens' choices, sum to 1;
    largest and smallest of them as multiples of the fair share 1/E; entropy of the shares as a share of ln E: 1 balanced, 0
    all on one; dropped: the share of choices that a capacity would drop in training. A layer that runs several times a pass has
    one entry for all of them. Routing is as in evaluation, without noise.

    Seen are feedforwards with num_experts, as moe.
    """

    name = "expert_load"

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config.every)
        self.windows = config.windows
        self.batch: Batch | None = None

    def on_start(self, run: RunContext) -> None:
        self.of_model = any(True for _ in routed(run.model))  # nothing to look at otherwise
        super().on_start(run)
        if not self.of_model:
            self.active = False
            run.out.log(f"callback {self.name}: no layer routes tokens to experts, so it sees nothing")

    def look(self, step: int) -> dict[str, Any]:
        self.batch = first_windows(self.run, self.windows) if self.batch is None else self.batch
        with looking(self.run) as model:
            given: dict[str, list[Tensor]] = {}
            modules = dict(routed(model))
            handles = [
                module.register_forward_pre_hook(lambda module, inputs, name=name: given.setdefault(name, []).append(inputs[0]))
                for name, module in modules.items()
            ]
            try:
                forward(model, self.batch)
            finally:
                for handle in handles:
                    handle.remove()
            found = {name: modules[name].expert_load(torch.cat(inputs)) for name, inputs in given.items()}  # type: ignore[operator]
        return {"layers": [{"layer": layer_of(name)} | described(load) for name, load in found.items()]}


def routed(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that route tokens to experts, by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, FeedforwardPart) and module.num_experts]


def described(load: dict[str, Tensor]) -> dict[str, Any]:
    shares = load["share"].tolist()
    fair = 1 / len(shares)
    numbers = {"largest": max(shares) / fair, "smallest": min(shares) / fair, "entropy": float(load["entropy"]), "dropped": float(load["dropped"])}
    return numbers | {"shares": shares}


def build(config: ProbeConfig) -> Callback:
    return ExpertLoad(config)
