"""Shared figure style: the Okabe-Ito colors (distinguishable for color-blind readers), few grid lines, direct labels."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colors of one mode. series: categorical colors; ramp(t): sequential colors, t in [0, 1]."""

    name: str
    background: str
    text: str
    muted: str
    grid: str
    series: tuple[str, ...]
    ramp_name: str
    ramp_range: tuple[float, float]

    def ramp(self, t: float) -> Any:
        from matplotlib import colormaps

        low, high = self.ramp_range
        return colormaps[self.ramp_name](low + (high - low) * t)


LIGHT = Theme("light", "#ffffff", "#1c2024", "#6b7480", "#e6e9ec", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), "viridis", (0.0, 0.66))
DARK = Theme("dark", "#161a1f", "#e6e9ec", "#98a2ad", "#2b3138", ("#56B4E9", "#F0883E", "#2FC49A", "#E39BC4", "#E9B949", "#8FC7EE"), "viridis", (0.45, 1.0))


@contextlib.contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Apply this theme's matplotlib settings within the context."""
    import matplotlib as mpl

    settings: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 9.5,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.background,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "text.color": theme.text,
        "axes.titlecolor": theme.text,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "figure.facecolor": theme.background,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "savefig.facecolor": theme.background,
    }
    with mpl.rc_context():
        import logging

        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # do not warn when the preferred font is missing
        mpl.rcParams.update(settings)  # type: ignore[arg-type]
        yield


def new_figure(width: float = 9.0, height: float = 3.4) -> Figure:
    """A standalone Agg figure, without pyplot state. Sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.06, hspace=0.08))
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, dpi: int = 150) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def end_label(axes: Axes, x: float, y: float, text: str, color: Any, **more: Any) -> None:
    """Label a line at its end, instead of a legend."""
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", color=color, va="center", fontsize=9, annotation_clip=False, **more)


def compact(number: float) -> str:
    """Three significant digits with an SI suffix: 1234567 as '1.23M', 11000 as '11.0k', 12 as '12'."""
    value, prefix = _scaled(number)
    return f"{value}{prefix}"


def with_unit(number: float, unit: str) -> str:
    """The same with a unit: 1.5e11 and 'FLOPs' as '150 GFLOPs', 1234567 and 'B' as '1.23 MB'."""
    value, prefix = _scaled(number)
    return f"{value} {prefix}{unit}"


def _scaled(number: float) -> tuple[str, str]:
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:#.3g}".rstrip("."), prefix
    return f"{number:.3g}", ""


def tick(number: float) -> str:
    """A tick label: 200000 as '200k'."""
    value, prefix = _scaled(number)
    return f"{float(value):g}{prefix}"


def byte_size(number: float) -> str:
    """1234567 as '1.23 MB', 12 as '12 B'."""
    return with_unit(number, "B") if abs(number) >= 1e3 else f"{number:.0f} B"


def plain_log_ticks(axis: Any) -> None:
    """Plain ticks on a logarithmic axis: '300k' rather than '3×10⁵'."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, position: tick(value)))
    axis.set_minor_formatter(NullFormatter())


def plain_ticks(axis: Any) -> None:
    """The same on a linear axis."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, position: tick(value)))
