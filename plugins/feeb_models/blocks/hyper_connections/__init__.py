"""Hyper-connections: several residual streams."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class HyperConnectionsConfig(feeb.PartConfig):
    num_streams: int = Field(4, ge=1, description="residual streams, mixed before attention and before feedforward")
    dynamic: bool = Field(True, description="the mix depends on the token; false: it is the same for all tokens")


PART = feeb.BlockSpec(
    "hyper_connections",
    HyperConnectionsConfig,
    build=f"{__name__}.hyper_connections:HyperConnections",
    summary="Hyper-connections: several residual streams, of which every sublayer reads a learned mix and to which it writes with learned weights.",
    reference="arXiv:2409.19606",
    since="1.1",
    equation="for f = attn, then f = mlp:   x = Σ_n α_n R_n;   R'_j = Σ_n A_nj R_n + β_j f(norm(x))      R_1 … R_N: N = num_streams streams\n"
    "dynamic: α, A += s tanh(W norm(R_n)), β += s' tanh(w·norm(R_n)) for each n;   at the end r = Σ_n R_n",
)
