"""The distribution of the logits: uniform at the start, then ever more peaked; growing without bound before a run diverges."""

from __future__ import annotations

from typing import Any

import torch

from feeb_tracking.options import ProbeConfig
from feeb_tracking.probe import Probe
from feebcore.protocols import Batch, BuildContext
from feebcore.train.probing import eval_mode, first_sequences, forward

LEVELS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
"""Quantiles of all logits that are written."""
POSITIONS = 256
"""Positions measured, evenly over the sequences."""
VALUES = 1 << 16
"""Logits that quantiles are taken of, evenly over those positions and the vocabulary."""


class Logits(Probe):
    """A row has `quantiles` of the logits at LEVELS (the first and last are extremes), and means
    over positions: logsumexp, entropy (nats), top1 (probability of the likeliest token), accuracy (it is the target);
    `finite`: whether every logit was a number."""

    name = "logits"

    def __init__(self, config: ProbeConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.batch: Batch | None = None
        self.was_finite = True

    def measure(self, step: int) -> dict[str, Any]:
        run = self.run
        self.batch = batch = first_sequences(run, self.config.sequences) if self.batch is None else self.batch
        with eval_mode(run) as model:
            hidden_NC = forward(model, batch).hidden.flatten(0, 1)
            stride = -(-len(hidden_NC) // POSITIONS)
            logits_NV = model.lm_head(hidden_NC[::stride]).float()  # type: ignore[operator]
        targets_N = batch.targets.flatten()[::stride]
        finite = bool(logits_NV.isfinite().all())
        if self.was_finite and not finite:
            run.out.log(f"step {step}: some logits are not finite")
        self.was_finite = finite
        log_z_N = logits_NV.logsumexp(-1)
        probability_NV = logits_NV.softmax(-1)
        top1_N, likeliest_N = probability_NV.max(-1)
        entropy_N = log_z_N - (probability_NV * logits_NV).sum(-1)
        means = torch.stack([log_z_N.mean(), entropy_N.mean(), top1_N.mean(), (likeliest_N == targets_N).float().mean()])
        some = logits_NV.flatten()[:: -(-logits_NV.numel() // VALUES)]
        quantiles = torch.quantile(some, torch.tensor(LEVELS, device=some.device))
        quantiles[0], quantiles[-1] = logits_NV.min(), logits_NV.max()
        return {"quantiles": quantiles.tolist()} | dict(zip(("logsumexp", "entropy", "top1", "accuracy"), means.tolist(), strict=True)) | {"finite": finite}
