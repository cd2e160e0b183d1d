"""HTML pages: one self-contained file each, without network access, in the browser's light or dark mode. Figures are drawn by chart.js
from the data of the same figures that are saved as PNG; a browser without scripts shows the PNG."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feebcore.report.chart import SCRIPT, as_json, chart_data
from feebcore.report.style import LIGHT, Theme, png, styled

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """A figure as PNG bytes, and as panels of chart data. caption: how to read it."""

    name: str
    heading: str
    caption: str
    png: bytes
    panels: list[dict[str, Any]]


def picture(name: str, heading: str, caption: str, draw: Callable[[Theme], Figure | None]) -> Picture | None:
    """What `draw` draws, None where it draws nothing."""
    panels = chart_data(draw)
    if not panels:
        return None
    with styled(LIGHT):
        figure = draw(LIGHT)
        assert figure is not None
        return Picture(name, heading, caption, png(figure), panels)


def render(pictures: list[Picture], **values: Any) -> str:
    """The page of a report as HTML text. Every value is escaped."""
    return environment().get_template("page.html.jinja").render(pictures={p.name: shown(p) for p in pictures}, **values)


def chart_page(title: str, pictures: list[Picture], **values: Any) -> str:
    """A page of figures. values: lead, command, sentences (in bold), table ({columns, rows}) and notes, of which any may be missing."""
    filled = {"lead": "", "command": "", "sentences": [], "table": None, "notes": []} | values
    return environment().get_template("chart.html.jinja").render(title=title, pictures=[shown(p) for p in pictures], **filled)


def environment() -> Environment:
    """Templates of this folder, with the style and the script of charts as `chart_css`, `sweep_css`, `base_css` and `chart_js`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name, file in (("chart_js", SCRIPT), ("chart_css", HERE / "chart.css"), ("sweep_css", HERE / "sweep.css"), ("base_css", HERE / "base.css")):
        made.globals[name] = Markup(file.read_text(encoding="utf-8"))
    return made


def shown(picture: Picture) -> Mapping[str, Any]:
    """The picture as templates take it."""
    from markupsafe import Markup

    image = "data:image/png;base64," + base64.b64encode(picture.png).decode()
    alt = ". ".join(filter(None, [picture.heading, picture.caption]))
    return {"name": picture.name, "heading": picture.heading, "caption": picture.caption, "image": image, "alt": alt, "data": Markup(as_json(picture.panels))}
