"""Proxies that the environment names and httpx, which opens every one of them for any address, cannot use."""

from __future__ import annotations

import importlib.util
import os

PROXIES = ("all_proxy", "http_proxy", "https_proxy")
HIDDEN_PROXIES = "FEEB_HIDDEN_PROXIES"
"""Names the proxies that were taken out of the environment for clients of a local server."""


def unusable_proxies() -> list[str]:
    """Variables that name a proxy which httpx cannot open, be it for the address at hand or not, those that HIDDEN_PROXIES lists included."""
    known = {"", "http", "https"} | ({"socks5", "socks5h"} if importlib.util.find_spec("socksio") else set())
    scheme = {name: value.lower().rpartition("://")[0] for name, value in os.environ.items() if name.lower() in PROXIES}
    wrong = [name for name in scheme if scheme[name] not in known]
    return sorted({*wrong, *filter(None, os.environ.get(HIDDEN_PROXIES, "").split(","))})
