"""Addresses in recipes. A recipe is stored with every run, sent to Prefect and printed, so an address in it holds no secret but the name of
an environment variable, `https://host/file?token=${TOKEN}`, which is read where the address is used and is never stored."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from feebcore.errors import DataError

VARIABLE = re.compile(r"\$\{(\w+)\}")
SECRET = re.compile(
    r"token|secret|signature|passw|credential|api[-_]?key|access[-_]?key|private[-_]?key|subscription[-_]?key|session"
    r"|^(.*[-_.])?(sig|sign|key|auth|authorization|jwt|hmac|hm|pwd|pass|policy|key-pair-id|googleaccessid)$",
    re.IGNORECASE,
)
REMEDY = "write the name of an environment variable in its place, as ${TOKEN}, and export that variable"


def with_host(url: str) -> str:
    """The address itself. Raises ValueError where it is none of a file on the web, as far as its variables leave that open."""
    try:
        parts = urlsplit(url)
        host, _ = (parts.netloc, 0) if VARIABLE.search(parts.netloc) else (parts.hostname, parts.port)
    except ValueError as error:  # of brackets or of a port
        raise ValueError(f"no address on the web, which is https://host/path: {error}") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", url):
        raise ValueError("no address on the web, which is https://host/path, without blanks")
    return url


def without_secrets(url: str) -> str:
    """The address itself. Raises ValueError, which does not repeat it, where it holds a user name, a password or a secret parameter."""
    parts = urlsplit(url)
    if "@" in parts.netloc and not VARIABLE.fullmatch(parts.netloc.rpartition("@")[0]):
        raise ValueError(f"a recipe is stored with every run, so a URL in it may not hold a user name or password; {REMEDY}")
    for pair in re.split(r"[&;]", f"{parts.query}&{parts.fragment}"):
        name, sign, value = pair.partition("=")
        if sign and value and SECRET.search(unquote(name)) and not VARIABLE.fullmatch(value):
            raise ValueError(f"a recipe is stored with every run, so a URL in it may not hold a secret such as {unquote(name)}=…; {REMEDY}")
    return url


def expanded(url: str) -> str:
    """The address with `${NAME}` replaced by that environment variable. Raises DataError for one that is not set."""

    def value(found: re.Match[str]) -> str:
        if not os.environ.get(found[1]):
            raise DataError(f"{url}: the environment has no variable {found[1]}; export it and run again")
        return os.environ[found[1]]

    return VARIABLE.sub(value, url)
