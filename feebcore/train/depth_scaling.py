"""One number for a run: how long it is and how large its batches are, from the model's depth and width. Loads no torch.

    N = 12 num_layers d_model^2               weights of standard blocks, whatever the parts really are
    D = tokens_per_parameter N                tokens of the run (20: arXiv:2203.15556)
    batch = 16384 (D / D_4)^0.383 tokens      D_4 = 62.9 M, the tokens of depth 4; the exponent is arXiv:2505.13738's

and learning rates by the scaling mup_lr with its references at depth 4 (4 layers of 256, 16,384 tokens per step), where AdamW's default learning rate was
tuned. Measured over four stacks by benchmarks/depth_scaling.py; see docs/training.md.
"""

from __future__ import annotations

from typing import Any

REFERENCE_LAYERS, REFERENCE_WIDTH, REFERENCE_BATCH_TOKENS = 4, 256, 16_384
BATCH_EXPONENT = 0.383
TOKENS_PER_PARAMETER = 20.0

LR_SCALING: dict[str, Any] = {
    "name": "mup_lr",
    "reference_width": REFERENCE_WIDTH,
    "reference_layers": REFERENCE_LAYERS,
    "reference_batch_tokens": REFERENCE_BATCH_TOKENS,
}


def block_weights(num_layers: int, d_model: int) -> int:
    """N: 4 d_model^2 of an attention and 8 d_model^2 of a feedforward a layer."""
    return 12 * num_layers * d_model**2


def depth_scaled_run(num_layers: int, d_model: int, seq_len: int, tokens_per_parameter: float, batch_size: int | None = None) -> tuple[int, int]:
    """(batch_size in sequences, max_steps); with a batch_size given, the steps that go with it.

    Example: 4 layers of 256, sequences of 128, 20 tokens a parameter -> 128 sequences, 3840 steps.
    """
    tokens = tokens_per_parameter * block_weights(num_layers, d_model)
    reference = TOKENS_PER_PARAMETER * block_weights(REFERENCE_LAYERS, REFERENCE_WIDTH)
    if batch_size is None:
        batch_size = max(1, round(REFERENCE_BATCH_TOKENS * (tokens / reference) ** BATCH_EXPONENT / seq_len))
    return batch_size, max(1, round(tokens / (batch_size * seq_len)))
