"""`feeb plot`: the curves of several runs in one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, WorkspaceOption
from feeb_pipelines.cli.tables import hint, print_json


def plot(
    *runs: Annotated[str, Parameter(help="Runs: STAGE/NAME, NAME, the start of a fingerprint, or a folder.")],
    x: Annotated[Literal["step", "tokens", "flops", "time"], Parameter(help="Horizontal axis.")] = "step",
    metric: Annotated[str, Parameter(help="Key of the training log, e.g. loss, lr, grad_norm, reward.")] = "loss",
    out: Annotated[Path, Parameter(help="Where to write, without suffix: OUT.png, and OUT.html with hover and zoom.")] = Path("plot"),
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Plot the logged curves of several runs over each other, against steps, tokens, training FLOPs or time.

    Training is a line, thin as it was logged and thick as its running mean; validation is a line with circles. Unfinished runs are drawn as far as they are.

    Examples:
        feeb plot pretrain/quickstart pretrain/wider
        feeb plot 3f2a91c0 7bd0 --x flops --metric grad_norm --out gradients
    """
    from feebcore.api import open_run
    from feebcore.errors import FeebError
    from feebcore.files import write_atomic
    from feebcore.report.curves import Curve, curve_of, draw_curves
    from feebcore.report.page import chart_page, picture

    if not runs:
        raise FeebError("name at least one run, as in feeb plot pretrain/quickstart; `feeb runs` lists them")
    curves: list[Curve] = []
    for text in runs:
        run = open_run(text, workspace)
        label = run.reference if sum(open_run(t, workspace).name == run.name for t in runs) > 1 else run.name
        curves.append(curve_of(run.path, label, metric, x, run.metrics))
    png_file, html_file = (out.with_name(f"{out.name}.{suffix}") for suffix in ("png", "html"))
    drawn = picture("curves", "", "", lambda theme: draw_curves(curves, metric, x, theme))
    assert drawn is not None
    write_atomic(png_file, drawn.png)
    write_atomic(html_file, chart_page(f"{metric} of {', '.join(dict.fromkeys(c.name for c in curves))}", [drawn]))
    if json:
        print_json({"png": str(png_file), "html": str(html_file), "runs": [c.name for c in curves]})
    else:
        print(f"{png_file}\n{html_file}")
        hint(f"open {html_file}")


plot.usage = "Usage: feeb plot RUN… [OPTIONS]"  # type: ignore[attr-defined]

COMMANDS = (plot,)
