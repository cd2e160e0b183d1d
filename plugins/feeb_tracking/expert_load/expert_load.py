"""How evenly a router spreads tokens over its experts: a router that sends all to a few leaves the others untrained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from feeb_tracking.options import ProbeConfig
from feeb_tracking.probe import Probe
from feebcore.model.parts import FeedforwardPart
from feebcore.protocols import Batch, BuildContext
from feebcore.train.callbacks import RunContext
from feebcore.train.probing import eval_mode, first_sequences, forward, layer_of


class ExpertLoad(Probe):
    """A row has `layers`, one entry a layer with experts: layer, its name; shares [E]: of the tokens' choices, sum to 1;
    largest and smallest of them as multiples of the fair share 1/E; entropy of the shares as a share of ln E: 1 balanced, 0
    all on one; dropped: the share of choices that a capacity would drop in training. A layer that runs several times a pass has
    one entry for all of them. Routing is as in evaluation, without noise.

    Seen are feedforwards with num_experts, as moe.
    """

    name = "expert_load"

    def __init__(self, config: ProbeConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.batch: Batch | None = None

    def on_start(self, run: RunContext) -> None:
        self.of_model = any(True for _ in routed(run.model))  # nothing to measure otherwise
        super().on_start(run)
        if not self.of_model:
            self.active = False
            run.out.log(f"callback {self.name}: no layer routes tokens to experts, so there is nothing to measure")

    def measure(self, step: int) -> dict[str, Any]:
        self.batch = first_sequences(self.run, self.config.sequences) if self.batch is None else self.batch
        with eval_mode(self.run) as model:
            routed_inputs: dict[str, list[Tensor]] = {}
            modules = dict(routed(model))
            handles = [
                module.register_forward_pre_hook(lambda module, inputs, name=name: routed_inputs.setdefault(name, []).append(inputs[0]))
                for name, module in modules.items()
            ]
            try:
                forward(model, self.batch)
            finally:
                for handle in handles:
                    handle.remove()
            loads = {name: modules[name].expert_load(torch.cat(inputs)) for name, inputs in routed_inputs.items()}
        return {"layers": [{"layer": layer_of(name)} | described(load) for name, load in loads.items()]}


def routed(model: nn.Module) -> list[tuple[str, FeedforwardPart]]:
    """Modules that route tokens to experts, by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, FeedforwardPart) and module.num_experts]


def described(load: dict[str, Tensor]) -> dict[str, Any]:
    shares = load["share"].tolist()
    fair = 1 / len(shares)
    numbers = {"largest": max(shares) / fair, "smallest": min(shares) / fair, "entropy": float(load["entropy"]), "dropped": float(load["dropped"])}
    return numbers | {"shares": shares}
