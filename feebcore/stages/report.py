"""Stage report: Writes one self-contained HTML page with every figure and number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import StageConfig
from feebcore.errors import Interrupted
from feebcore.files import read_json
from feebcore.specs import Need, StageSpec


class ReportConfig(StageConfig):
    """Options of stage report: none. It shows whatever the recipe's other stages made."""


PART = StageSpec(
    "report",
    ReportConfig,
    build=f"{__name__}:run",
    needs=(Need("stages", kind="*", many=True, optional=True),),
    makes=("page",),
    shows=True,
    process="inline",
    summary="Writes one self-contained HTML page with every figure and number.",
)


def run(section: ReportConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    """Writes report.html, figures/ and summary.json; a run that was stopped starts over, it takes seconds."""
    from feebcore.report.build import build_report

    def tick(done: int, total: int) -> None:
        if out.stop_requested:
            raise Interrupted("report: stopped; run it again")
        out.progress(done, total, "", "report")

    recipe, environment = (read_json(out.path / name) if (out.path / name).exists() else {} for name in ("recipe.json", "environment.json"))
    metrics = build_report(inputs, out.path, recipe, environment, tick)
    out.content("report.html", "figures/*.png", "summary.json")
    out.log(f"report: {out.path / 'report.html'}")
    return metrics
