"""The base class of optimizers."""

from __future__ import annotations

import torch


class Optimizer(torch.optim.Optimizer):
    """torch.optim.Optimizer with what the training loop asks for. One of torch's own joins in as

        class RMSprop(Optimizer, torch.optim.RMSprop): ...

    Each torch group holds lr, weight_decay and, where there are such, momentum or betas: schedules set them there every step.
    Adam's average of squared gradients has its decay rate in betas[1] (or beta2, where betas[0] is no momentum) and an eps in the group:
    these a learning-rate scaling may change. A group never joins parameters of several ParamGroups. State is tensors, in fp32, and JSON values.
    """

    counters: tuple[str, ...] = ()
    """Keys of torch groups that count steps or sum something up, JSON values: all that a checkpoint holds of groups. A run that
    resumes or branches takes them over; every other key is an option, and that of the recipe and the strategy at hand."""

    has_eval_weights = False
    """Whether the weights to evaluate are others than those that are trained; RL, which samples from what it trains, refuses that."""

    _step_supports_amp_scaling = False
    """torch's name: `step` multiplies gradients by 1 / `self.grad_scale` as it reads them (fused optimizers)."""

    def share_state(self) -> None:
        """Give every rank the state that one rank alone keeps up to date. Every rank calls it before a checkpoint."""

    def use_eval_weights(self) -> None:
        """Put the weights to validate, score and save into the parameters; calling it again changes nothing."""

    def use_train_weights(self) -> None:
        """Put the weights back as `use_eval_weights` found them, bit for bit; without it nothing happens."""
