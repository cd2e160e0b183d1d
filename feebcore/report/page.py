"""The HTML page: one self-contained file with embedded images, no scripts and no network access; follows the light or dark mode of the browser."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Picture:
    """A figure in light and dark mode, as PNG bytes. caption: how to read it."""

    name: str
    heading: str
    caption: str
    light: bytes
    dark: bytes


def render(pictures: list[Picture], **values: Any) -> str:
    """The page as HTML text. Every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown: dict[str, Mapping[str, Any]] = {
        p.name: {"heading": p.heading, "caption": p.caption, "light": _data_url(p.light), "dark": _data_url(p.dark), "alt": f"{p.heading}. {p.caption}"}
        for p in pictures
    }
    return environment.get_template(TEMPLATE).render(pictures=shown, **values)


def _data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()
