"""The tokens of a finished artifact: opened, there or at the address of a copy, and verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feebcore.artifacts import Artifact
from feebcore.data.addresses import expanded
from feebcore.errors import ArtifactError
from feebcore.files import read_json

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore

HASH_UP_TO = 2 << 30
"""Bytes of token shards that are verified before training; more would take longer than a second or two."""


def open_tokens(tokens: Artifact, split: str, address: str = "") -> TokenStore:
    """A split of the artifact's tokens, or of their copy at `address`. Raises ArtifactError where the tokens are not the artifact's."""
    from feebcore.data.store import TokenStore

    if not address:
        return TokenStore.open(tokens.file("tokens.zarr"), split)
    store = TokenStore.open(expanded(address), split, ledger=tokens.path / "ledger.jsonl")
    if store.tokens_sha256 != read_json(tokens.file("tokens.json"))[split]["tokens_sha256"]:
        raise ArtifactError(f"pretrain.tokens_url: {address} holds other tokens than {tokens.path}; copy its tokens.zarr there")
    return store


def verify_tokens(tokens: Artifact) -> None:
    """Raises ArtifactError when a token shard was truncated or altered."""
    tokens.check_sizes()
    files = {name: entry["size"] for name, entry in tokens.manifest["files"].items() if name.startswith("tokens.zarr/")}
    if sum(files.values()) <= HASH_UP_TO:
        for name in files:
            tokens.check_hash(name)
