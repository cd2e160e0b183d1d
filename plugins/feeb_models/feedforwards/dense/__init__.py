"""Two matrices and an activation, with or without a gate."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.feedforwards.options import FeedforwardConfig, GatedConfig

DENSE = f"{__name__}.dense"

PARTS = (
    feeb.FeedforwardSpec(
        "gelu",
        FeedforwardConfig,
        build=f"{DENSE}:Gelu",
        summary="GELU feedforward: W2 gelu(W1 x).",
        reference="arXiv:1606.08415",
        equation="y = W2 gelu(W1 x),   gelu(z) = z (1 + tanh(√(2/π) (z + 0.044715 z³))) / 2",
    ),
    feeb.FeedforwardSpec(
        "relu",
        FeedforwardConfig,
        build=f"{DENSE}:Relu",
        summary="ReLU feedforward: W2 relu(W1 x).",
        reference="arXiv:1706.03762",
        equation="y = W2 max(0, W1 x)",
    ),
    feeb.FeedforwardSpec(
        "relu_squared",
        FeedforwardConfig,
        build=f"{DENSE}:ReluSquared",
        summary="Squared ReLU feedforward: W2 relu(W1 x)^2.",
        reference="arXiv:2109.08668",
        equation="y = W2 max(0, W1 x)²",
    ),
    feeb.FeedforwardSpec(
        "swiglu",
        GatedConfig,
        build=f"{DENSE}:Swiglu",
        summary="SwiGLU feedforward: W2 (silu(W1 x) * W3 x).",
        reference="arXiv:2002.05202",
        equation="y = W2 (silu(W1 x) * W3 x),   silu(z) = z / (1 + exp(−z))",
    ),
    feeb.FeedforwardSpec(
        "geglu",
        GatedConfig,
        build=f"{DENSE}:Geglu",
        summary="GEGLU feedforward: W2 (gelu(W1 x) * W3 x).",
        reference="arXiv:2002.05202",
        since="1.1",
        equation="y = W2 (gelu(W1 x) * W3 x)      gelu(z) as in gelu",
    ),
    feeb.FeedforwardSpec(
        "affine_gelu",
        FeedforwardConfig,
        build=f"{DENSE}:AffineGeluFeedforward",
        summary="GELU feedforward with a learned affine map: W2 gelu(a * W1 x + b), with a scale a and a shift b learned per hidden unit.",
        reference="arXiv:1606.08415",
        since="1.1",
        equation="y = W2 gelu(a * W1 x + b)      a, b [F] learned, 1 and 0 at first",
    ),
)
