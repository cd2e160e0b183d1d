"""Charts in a real browser, where one is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from feebcore.report.curves import Curve, draw_curves
from feebcore.report.page import chart_page, picture
from feebcore.report.sweep_page import write_page

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)

USE = """
<script>
window.onerror = (message) => (document.title = JSON.stringify({ error: message }));
setTimeout(function use() {
  const plot = document.querySelector(".chart-plot"), box = plot.getBoundingClientRect();
  if (+plot.querySelector("svg").getAttribute("width") !== plot.clientWidth) return setTimeout(use, 50); // not yet drawn anew for its size
  const send = (target, type, x) => target.dispatchEvent(new PointerEvent(type, { clientX: box.left + x, clientY: box.top + 40, bubbles: true, pointerType: "mouse", button: 0 }));
  const labels = () => [...plot.querySelectorAll("svg > text")].map((t) => t.textContent).join(" ");
  const paths = () => plot.querySelectorAll("svg path").length;
  const before = labels(), found = { drawn: paths(), width: document.documentElement.scrollWidth };
  send(plot, "pointermove", box.width / 2);
  found.tip = plot.querySelector(".chart-tip").textContent;
  send(plot, "pointerdown", box.width / 3); send(plot, "pointermove", box.width / 2); send(window, "pointerup", box.width / 2);
  found.zoomed = labels() !== before;
  plot.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  found.reset = labels() === before;
  document.querySelector(".chart-legend button").click();
  found.hidden = found.drawn - paths();
  document.title = JSON.stringify(found);
}, 300);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [500, 1200])
def test_a_chart_can_be_read_zoomed_and_its_curves_hidden(tmp_path: Path, width: int) -> None:
    steps = [float(s) for s in range(1, 101)]
    curves = [Curve(name, (steps, [k + 10 / s for s in steps]), ([50.0, 100.0], [k + 0.5, k + 0.4])) for k, name in ((1, "base"), (2, "</script>idea"))]
    drawn = picture("curves", "", "", lambda theme: draw_curves(curves, "loss", "step", theme))
    assert drawn is not None
    (tmp_path / "page.html").write_text(chart_page("Curves", [drawn]).replace("</body>", USE + "</body>"))
    found = titled(tmp_path, width)
    assert "error" not in found
    assert found["zoomed"]
    assert found["reset"]
    assert found["hidden"] >= 1
    assert found["width"] <= width
    assert re.match(r"step \d+base [\d.]+", found["tip"])


COUNT = """
<script>
window.onerror = (message) => (document.title = JSON.stringify({ error: message }));
setTimeout(() => {
  const drawn = [...document.querySelectorAll(".chart-plot")].map((plot) => plot.querySelectorAll("svg g circle, svg g polygon").length);
  document.title = JSON.stringify({ drawn, width: document.documentElement.scrollWidth });
}, 500);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [500, 1200])
def test_the_page_of_a_sweep_fits_its_window_and_every_panel_is_drawn(tmp_path: Path, width: int) -> None:
    import numpy as np
    from fake_run import law_document

    (tmp_path / "law.json").write_text(json.dumps(law_document(np.random.default_rng(0))))
    page = write_page(tmp_path)
    page.write_text(page.read_text().replace("</body>", COUNT + "</body>"))
    found = titled(tmp_path, width)
    assert "error" not in found
    assert len(found["drawn"]) == 7  # curves and best sizes, parity, residuals twice, rollouts, a place of the probe
    assert all(found["drawn"])
    assert found["width"] <= width


def titled(tmp_path: Path, width: int) -> dict[str, Any]:
    """What the page wrote into its title, as JSON."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--virtual-time-budget=3000"]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri()]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found: dict[str, Any] = json.loads(re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return found
