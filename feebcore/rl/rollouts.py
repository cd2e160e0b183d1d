"""Rollouts, and the padded tensors that algorithms see.

A rollout keeps the token ids that were sampled (nothing is ever re-tokenized), the log-probabilities of the
distribution they were drawn from, why it ended and which policy made it. Shapes: N rollouts, T completion tokens,
L prompt and completion tokens, C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from feebcore.generate.engine import Completion
from feebcore.protocols import LanguageModel
from feebcore.rl.advantages import length_mask
from feebcore.rl.losses import Totals


@dataclass(frozen=True)
class Rollout:
    """One sampled completion. tokens: prompt and completion ids, the end token included when it was drawn.

    log_probs: one per completion token. reward: None when it could not be scored. group: rollouts of one prompt share it.
    """

    tokens: tuple[int, ...]
    prompt_length: int
    log_probs: tuple[float, ...]
    finish_reason: str
    policy_version: int
    reward: float | None
    group: int

    @property
    def length(self) -> int:
        """Completion tokens, the end token included."""
        return len(self.tokens) - self.prompt_length

    @property
    def completion(self) -> tuple[int, ...]:
        return self.tokens[self.prompt_length :]


def make_rollout(prompt: Sequence[int], completion: Completion, reward: float | None, group: int, policy_version: int) -> Rollout:
    return Rollout((*prompt, *completion.tokens), len(prompt), tuple(completion.log_probs), completion.finish_reason, policy_version, reward, group)


@dataclass
class Experience:
    """Rollouts as tensors, rows right-padded. Masks come from `lengths`.

    tokens [N,L]; starts [N] prompt lengths; lengths [N]; log_probs [N,T] of the sampling distribution; rewards [N]
    (NaN: not scored); groups [N]; truncated [N] bool: ended without the end token. reference_log_probs [N,T] and
    values [N,T+1] are filled in by the trainer, advantages [N,T] and returns [N,T] by the algorithm.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    log_probs: Tensor
    rewards: Tensor
    groups: Tensor
    truncated: Tensor
    max_completion_tokens: int
    reference_log_probs: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def mask(self) -> Tensor:
        """[N,T] bool: real completion tokens."""
        return length_mask(self.lengths, self.log_probs.shape[1])

    def rows(self, index: Tensor) -> Experience:
        """The same record for some rollouts only."""
        tensors: dict[str, Any] = {f.name: v[index] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **tensors)


def collate(rollouts: Sequence[Rollout], max_completion_tokens: int, device: torch.device | str = "cpu") -> Experience:
    """Rollouts to tensors; padding holds id 0, which no mask ever looks at. max_completion_tokens: tokens a completion may have."""
    num_rows = len(rollouts)
    width = max(len(r.tokens) for r in rollouts)
    longest = max(r.length for r in rollouts)
    tokens = np.zeros((num_rows, width), dtype=np.int64)
    log_probs = np.zeros((num_rows, longest), dtype=np.float32)
    for i, rollout in enumerate(rollouts):
        tokens[i, : len(rollout.tokens)] = rollout.tokens
        log_probs[i, : rollout.length] = rollout.log_probs
    column = lambda values, dtype: torch.tensor(list(values), dtype=dtype, device=device)  # noqa: E731
    return Experience(
        tokens=torch.from_numpy(tokens).to(device),
        starts=column((r.prompt_length for r in rollouts), torch.int64),
        lengths=column((r.length for r in rollouts), torch.int64),
        log_probs=torch.from_numpy(log_probs).to(device),
        rewards=column((float("nan") if r.reward is None else r.reward for r in rollouts), torch.float32),
        groups=column((r.group for r in rollouts), torch.int64),
        truncated=column((r.finish_reason != "stop" for r in rollouts), torch.bool),
        max_completion_tokens=max_completion_tokens,
    )


@dataclass
class Prediction:
    """What the policy says now about sampled tokens: log_probs and entropy [N,T], values [N,T+1]; 0 on padding."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor | None = None


def predict(
    model: LanguageModel,
    experience: Experience,
    logits_processors: Sequence[Callable[[Tensor], Tensor]] = (),
    value_head: nn.Module | None = None,
) -> Prediction:
    """Teacher-forced log-probabilities of the completion tokens under the processed distribution.

    Logits are made for completion tokens only. Rows are right-padded and attention is causal, so padding is never seen.
    """
    lengths, starts = experience.lengths, experience.starts
    mask = experience.mask
    num_rows, width = mask.shape
    hidden = model(experience.tokens).hidden
    row, column = mask.nonzero(as_tuple=True)
    before = starts[row] + column - 1  # the position whose output predicts this token
    logits = model.lm_head(hidden[row, before]).float()
    for processor in logits_processors:
        logits = processor(logits)
    log_softmax = logits.log_softmax(-1)
    chosen = log_softmax.gather(-1, experience.tokens[row, before + 1][:, None])[:, 0]
    entropy = -(log_softmax.exp() * log_softmax.masked_fill(log_softmax == -torch.inf, 0.0)).sum(-1)
    flat = lambda values: values.new_zeros(num_rows, width).masked_scatter(mask, values)  # noqa: E731
    prediction = Prediction(flat(chosen), flat(entropy))
    if value_head is not None:
        states = length_mask(lengths + 1, width + 1)
        row, column = states.nonzero(as_tuple=True)
        values = value_head(hidden[row, starts[row] + column - 1].float())[:, 0]
        prediction.values = values.new_zeros(num_rows, width + 1).masked_scatter(states, values)
    return prediction


@dataclass
class LossTerms:
    """loss: this micro-batch's share of the step's loss. sums: metric sums over real tokens (constants), by name."""

    loss: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)


class Algorithm:
    """How rollouts become an update. `controller_state` holds what adapts over a run (JSON numbers, saved in checkpoints).

    epochs, minibatches: passes over one batch of rollouts, and optimizer steps per pass. uses_values: needs a value head.
    uses_reference: its loss or reward needs the reference model on every step.
    """

    epochs: int = 1
    minibatches: int = 1
    uses_values: bool = False
    uses_reference: bool = False

    def initial_controller_state(self) -> dict[str, float]:
        """Default: nothing adapts."""
        return {}

    def prepare(self, experience: Experience, controller_state: dict[str, float]) -> dict[str, float]:
        """Fill in `experience.advantages` (and `returns`); metrics of the step."""
        raise NotImplementedError

    def loss(self, prediction: Prediction, experience: Experience, totals: Totals, controller_state: dict[str, float]) -> LossTerms:
        """The loss of a micro-batch, as its share of the optimizer step that `totals` describes."""
        raise NotImplementedError

    def adapt(self, controller_state: dict[str, float], metrics: dict[str, Any]) -> None:
        """Change `controller_state` in place after a step. Default: nothing."""
