"""A matplotlib figure as data that chart.js draws in the browser: the same curves, bars, labels and limits, for hover and zoom.

A series has a name in the legend and under the cursor where its artist has a gid. Labels at the ends of lines are left out, as the
legend says the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.report.style import DARK, LIGHT, Theme, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCRIPT = Path(__file__).with_name("chart.js")
POINTS = 2000
"""Of one line at most; longer ones keep the extremes of equal stretches."""
DASHES = {"-": "", "--": "6 4", ":": "2 4", "-.": "6 3 2 3", "None": "none", "none": "none", "": "none", " ": "none"}


def chart_data(draw: Callable[[Theme], Figure | None]) -> list[dict[str, Any]]:
    """The panels of the figure that `draw` makes, each color as that of the light and of the dark mode; empty without a figure."""
    modes = []
    for theme in (LIGHT, DARK):
        with styled(theme):
            figure = draw(theme)
            if figure is None:
                return []
            modes.append([_panel(axes) for axes in figure.axes])
    return [_both(light, dark) for light, dark in zip(*modes, strict=True)]


def as_json(panels: list[dict[str, Any]]) -> str:
    """For a <script> element of HTML: nothing inside can end it."""
    return json.dumps(panels, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")


def _both(light: Any, dark: Any, key: str = "") -> Any:
    """Two equal structures as one, with both colors."""
    if key == "color":
        return [light, dark]
    if isinstance(light, dict):
        return {k: _both(light[k], dark[k], k) for k in light}
    if isinstance(light, list) and light and isinstance(light[0], dict):
        return [_both(a, b) for a, b in zip(light, dark, strict=True)]
    return light


def _panel(axes: Axes) -> dict[str, Any]:
    from matplotlib.ticker import FixedLocator

    panel: dict[str, Any] = {
        "title": axes.get_title("left") or axes.get_title(),
        "xlabel": axes.get_xlabel(),
        "ylabel": axes.get_ylabel(),
        "xscale": axes.get_xscale(),
        "yscale": axes.get_yscale(),
        "xlim": [float(v) for v in axes.get_xlim()],
        "ylim": sorted(float(v) for v in axes.get_ylim()),
        "yflip": bool(axes.yaxis_inverted()),
        "series": [*_patches(axes), *_collections(axes), *_lines(axes)],
        "texts": list(_texts(axes)),
    }
    for name, axis in (("xticks", axes.xaxis), ("yticks", axes.yaxis)):
        if isinstance(axis.get_major_locator(), FixedLocator):
            places = [float(at) for at in axis.get_majorticklocs()]
            panel[name] = [[at, text] for at, text in zip(places, axis.get_major_formatter().format_ticks(places), strict=True)]
    if (place := axes.get_subplotspec()) is not None:
        ratios: Any = place.get_gridspec().get_width_ratios()
        panel["weight"] = round(float(ratios[place.colspan.start] / max(ratios)), 2)
    if "yticks" in panel:
        panel["height"] = 60 + 34 * len(panel["yticks"])
    return panel


def _lines(axes: Axes) -> Iterator[dict[str, Any]]:
    from matplotlib.colors import to_hex

    for line in axes.get_lines():
        x, y = (np.atleast_1d(np.asarray(v, dtype=float)) for v in line.get_data(orig=False))
        style: dict[str, Any] = {"color": to_hex(line.get_color()), "alpha": _round(line.get_alpha() or 1.0), "width": _round(line.get_linewidth())}
        style["dash"] = _dash(line)
        if (transform := line.get_transform()) == axes.get_xaxis_transform():
            yield {"type": "rule", "axis": "x", "at": _round(x[0]), **style}
            continue
        if transform == axes.get_yaxis_transform():
            yield {"type": "rule", "axis": "y", "at": _round(y[0]), **style}
            continue
        if line.get_marker() not in ("None", None, "", " "):
            style |= {"marker": str(line.get_marker()), "size": _round(line.get_markersize())}
            if line.get_markerfacecolor() != line.get_markeredgecolor() and to_hex(line.get_markerfacecolor()) == to_hex(axes.get_facecolor()):
                style |= {"hollow": True, "color": to_hex(line.get_markeredgecolor())}
        x, y = _thinned(x, y)
        yield {"type": "line", "x": [_round(v) for v in x], "y": [_round(v) for v in y], "name": line.get_gid() or "", **style}


def _dash(line: Any) -> str:
    style = line.get_linestyle()
    if style == "--" and (pattern := getattr(line, "_unscaled_dash_pattern", (0, None))[1]) is not None:
        return " ".join(f"{1.5 * v:.0f}" for v in pattern)
    return DASHES.get(style, "")


def _collections(axes: Axes) -> Iterator[dict[str, Any]]:
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_hex

    for collection in axes.collections:
        if isinstance(collection, LineCollection):  # of error bars
            colors: Any = collection.get_colors()  # type: ignore[attr-defined]
            color = to_hex(colors[0])
            for (x1, y1), (x2, y2) in ((s[0], s[-1]) for s in collection.get_segments() if len(s)):
                yield {"type": "line", "x": [_round(x1), _round(x2)], "y": [_round(y1), _round(y2)], "name": "", "color": color, "width": 1.4}
        elif isinstance(collection, PolyCollection):
            faces: Any = collection.get_facecolor()
            color, alpha = to_hex(faces[0]), _round(collection.get_alpha() or 1.0)
            for path in collection.get_paths():
                vertices: Any = path.vertices
                points = [[_round(x), _round(y)] for x, y in vertices if math.isfinite(x) and math.isfinite(y)]
                yield {"type": "area", "points": points, "color": color, "alpha": alpha}


def _patches(axes: Axes) -> Iterator[dict[str, Any]]:
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    for patch in axes.patches:
        if isinstance(patch, Rectangle):
            x, y = patch.get_xy()
            sides = {"x": _round(x), "y": _round(y), "w": _round(patch.get_width()), "h": _round(patch.get_height())}
            spans = patch.get_data_transform() == axes.get_xaxis_transform()  # of axvspan: from the bottom of the panel to its top
            name = patch.get_gid() or ""
            yield {
                "type": "rect",
                "name": name,
                **sides,
                "full": "y" if spans else "",
                "color": to_hex(patch.get_facecolor()),
                "alpha": _round(patch.get_alpha() or 1.0),
            }


def _texts(axes: Axes) -> Iterator[dict[str, Any]]:
    from matplotlib.colors import to_hex
    from matplotlib.text import Annotation

    anchors = {"left": "start", "center": "middle", "right": "end"}
    for text in axes.texts:
        if not isinstance(text, Annotation) or text.get_annotation_clip() is False:
            continue
        dx, dy = text.xyann if text.anncoords == "offset points" else (0.0, 0.0)
        yield {
            "text": text.get_text(),
            "x": _round(text.xy[0]),
            "y": _round(text.xy[1]),
            "fraction": text.xycoords == "axes fraction",
            "dx": _round(dx),
            "dy": _round(dy),
            "anchor": anchors[text.get_horizontalalignment()],
            "bold": text.get_fontweight() == "bold",
            "color": to_hex(text.get_color()),
        }


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= POINTS:
        return x, y
    keep: list[int] = []
    for stretch in np.array_split(np.arange(len(x)), POINTS // 2):
        values = np.where(np.isfinite(y[stretch]), y[stretch], 0.0)
        keep += sorted({int(stretch[values.argmin()]), int(stretch[values.argmax()])})
    return x[keep], y[keep]


def _round(value: Any) -> float | None:
    """Six significant digits; None for what is not finite."""
    return float(f"{float(value):.6g}") if math.isfinite(float(value)) else None
