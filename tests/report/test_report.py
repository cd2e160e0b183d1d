"""The report shows the numbers of the artifacts, is self-contained, and renders when any stage is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from feebcore.artifacts import Artifact
from feebcore.report import facts, figures
from feebcore.report.build import _training_caption, build_report, draw_all
from feebcore.report.style import LIGHT, byte_size, compact, styled, tick, with_unit

FIGURES = {
    "training.png",
    "optimization.png",
    "residual_stream.png",
    "gradients.png",
    "logits.png",
    "throughput.png",
    *(f"sweep_{name}.png" for name in ("isoflop", "predictions", "residuals", "rollouts", "lr_probe")),
    "reinforcement.png",
    "evaluation.png",
    "stage_times.png",
}


@pytest.fixture(scope="session")
def page(whole_run) -> tuple[Path, str]:
    from fake_run import ENVIRONMENT, RECIPE

    root, artifacts = whole_run
    folder = root / "report" / "quickstart-0123456789ab"
    folder.mkdir(parents=True)
    assert build_report(artifacts, folder, RECIPE, ENVIRONMENT, lambda done, total: None) == {"report": "report.html", "figures": 14}
    return folder, (folder / "report.html").read_text(encoding="utf-8")


class Links(HTMLParser):
    """Every URL in a page, and the tags that are never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "srcset", "href", "action", "data")]
        if tag not in ("meta", "link", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"


def test_the_page_is_well_formed_and_self_contained(page) -> None:
    folder, text = page
    parsed = Links(text)
    assert parsed.open == []
    inside, outside = [a for a in parsed.addresses if a.startswith(("data:", "#"))], [a for a in parsed.addresses if not a.startswith(("data:", "#"))]
    assert outside
    assert all((folder / address).is_file() for address in outside)  # files of the workspace
    assert all(f'id="{address[1:]}"' in text for address in inside if address.startswith("#"))
    assert not re.search(r"url\(['\"]?(?!#)|@import|fetch\(|XMLHttpRequest", text)
    assert len(text) < 6e6
    assert {p.name for p in (folder / "figures").iterdir()} == FIGURES
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (folder / "figures").iterdir())


def test_the_head_says_how_the_page_was_made_and_the_settings_what_was_trained(whole_run, tmp_path: Path) -> None:
    from fake_run import ENVIRONMENT

    rows = facts.made_by({"recipe": "my runs/a.yaml", "overrides": ["seed=3"]}, ENVIRONMENT, whole_run[1])
    assert rows[0] == ("command", "feeb run 'my runs/a.yaml' --set seed=3")
    assert rows[1][0] == "finished"
    assert rows[2] == ("feeb", "0.1.0 9f3c2a71d0")


def test_settings_name_the_model_and_the_optimizer(tiny_chain) -> None:
    tables = dict(facts.settings(tiny_chain[1]))
    assert ("d_model", "32") in tables["Model"]
    training = dict(tables["Pretraining"])
    assert training["max_steps"] == "6"
    assert training["optimizer"].startswith("adamw (lr 0.003, weight_decay 0.1")
    assert training["precision"] == "fp32"


def test_utilization_is_never_above_the_peak() -> None:
    from feebcore.report.probe_figures import within_peak

    assert within_peak([0.5, 0.25]) == [0.5, 0.25]
    assert within_peak([1.25, 0.5]) == [1.0, 0.4]


def test_a_curve_that_is_cut_off_says_so() -> None:
    losses = [9.0, 8.0, 20.0, *(4.0 - k / 100 for k in range(60))]
    rows = [{"step": k + 1, "split": "train", "loss": loss} for k, loss in enumerate(losses)]
    rows += [{"step": 5, "split": "validation", "loss": 30.0}]
    with styled(LIGHT):
        figure = figures.training({"pretrain": rows}, LIGHT)
    assert figure is not None
    assert any("up to 30" in text.get_text() for text in figure.axes[0].texts)


def test_the_caption_of_the_loss_curves_names_what_is_in_them() -> None:
    rows = [{"step": 1, "split": "train", "loss": 4.0}]
    sampled, whole = ({"step": 1, "split": "validation", "loss": 4.0, "whole_split": answer} for answer in (False, True))
    assert _training_caption([rows]) == ""
    assert "Circles" in _training_caption([[*rows, sampled]])
    assert "Diamond" not in _training_caption([[*rows, sampled]])
    assert _training_caption([rows, [whole]]) == "Diamond: loss on the whole validation split."
    assert "Thin line" in _training_caption([rows * 200])


@pytest.mark.parametrize(("share", "said"), [({}, "1.500 bits per byte ("), ({"val_share": 0.2307}, "1.500 bits per byte, on 23% of the validation split (")])
def test_a_validation_loss_of_a_part_of_the_split_says_so(tiny_chain, share: dict, said: str) -> None:
    made = tiny_chain[1]["pretrain"]
    pretrain = Artifact(made.path, {**made.manifest, "metrics": {**made.metrics, "val_bits_per_byte": 1.5, **share}})
    (sentence,) = (s for s in facts.sentences({"pretrain": pretrain}) if s.topic == "Pretraining")
    assert said in sentence.text


def test_samples_are_escaped(page) -> None:
    _, text = page
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_the_page_shows_numbers_verdicts_parts_recipe_and_fingerprints(page, whole_run) -> None:
    _, text = page
    for words in ("1.782", "31.2 MB", "feeb/muon", "max_steps: 1400", "torch", "Significant improvement", "from feeb 0.1.0"):
        assert words in text
    for artifact in whole_run[1].values():
        assert artifact.fingerprint in text
    summary = json.loads((page[0] / "summary.json").read_text())
    assert summary["metrics"]["pretrain"]["val_bits_per_byte"] == 1.782


@pytest.mark.parametrize("missing", ["pretrain", "sweep", "rl", "evaluate", "download"])
def test_any_stage_may_be_absent(whole_run, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from feebcore.report import page as page_of_report

    monkeypatch.setattr(page_of_report, "png", lambda figure: b"\x89PNG")
    artifacts = {k: a for k, a in whole_run[1].items() if k != missing}
    folder = _folder(tmp_path)
    build_report(artifacts, folder, {}, {}, lambda done, total: None)
    page = (folder / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    for stage, heading in {"sweep": "Scaling law", "rl": "Reinforcement learning", "evaluate": "Evaluation"}.items():
        assert (f">{heading}</h2>" in page) == (stage != missing), f"section {heading!r} without {missing}"


def _folder(root: Path) -> Path:
    folder = root / "report" / "x-0123456789ab"
    folder.mkdir(parents=True)
    return folder


def test_a_report_of_nothing_is_a_page(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    assert build_report({}, folder, {}, {}, lambda done, total: None)["figures"] == 0
    assert Links((folder / "report.html").read_text()).open == []


def test_a_real_chain_gives_a_report(tiny_chain, tmp_path: Path) -> None:
    _, artifacts = tiny_chain
    folder = _folder(tmp_path)
    assert build_report(artifacts, folder, {"name": "tiny"}, {}, lambda done, total: None)["figures"] >= 2
    assert f"{artifacts['pretrain'].metrics['val_bits_per_byte']:.3f}" in (folder / "report.html").read_text()


def test_verdicts_follow_the_intervals(whole_run) -> None:
    import dataclasses

    from fake_run import share

    rl = whole_run[1]["rl"]

    def verdict(before: float, after: float) -> facts.Sentence:
        metrics = {**rl.metrics, "accuracy_before": share(before, 100), "accuracy_after": share(after, 100)}
        return facts._rl({"rl": dataclasses.replace(rl, manifest={**rl.manifest, "metrics": metrics})})[0]

    assert verdict(0.3, 0.8).tone == "good"
    assert verdict(0.8, 0.3).tone == "bad"
    assert verdict(0.5, 0.55).tone == "doubt"
    assert "Not significant" in verdict(0.5, 0.5).text


def test_training_figure_ignores_missing_and_infinite_values() -> None:
    rows = [
        {"step": 1, "split": "train", "loss": 5.0},
        {"step": 2, "split": "train", "loss": float("inf")},
        {"step": 3, "split": "train"},
        {"step": 4, "split": "train", "loss": 4.0},
    ]
    assert figures.column(rows, "loss", "train") == ([1.0, 4.0], [5.0, 4.0])
    with styled(LIGHT):
        assert figures.training({"pretrain": rows}, LIGHT) is not None


def test_probe_figures_appear_where_there_is_data_and_tolerate_gaps(whole_run) -> None:
    """An old or broken row must not keep the report from being made: numbers may be null, probes may be missing."""
    from feebcore.report import probe_figures

    pretrain = {"pretrain": whole_run[1]["pretrain"]}
    assert {p.name for p in draw_all(pretrain)} >= {"residual_stream", "gradients", "logits", "throughput"}
    block = {"layer": 0, "before": None, "between": [], "after": None, "attention": None, "feedforward": {"rms": None, "histogram": [None] * 6}}
    layer = {"layer": "h.0", "gradient": None, "weight": 0.0, "update": None}
    loop = {"step": 0, "greedy": {"repeated": 0.5}, "sampled": {"repeated": 0.1}, "text": {"repeated": 0.0}}
    with styled(LIGHT):
        assert probe_figures.residual_stream([{"step": 0, "blocks": [{"layer": 0, "after": 1.0}]}], LIGHT) is not None
        assert probe_figures.residual_stream([{"step": 0, "blocks": [block]}], LIGHT) is not None
        assert probe_figures.gradients([{"step": 1, "layers": [layer]}], LIGHT) is not None
        assert probe_figures.logits([{"step": 0, "quantiles": [None] * 7, "entropy": None}], [loop], LIGHT) is not None
        assert probe_figures.throughput([{"step": 1, "mfu": 0.2}], LIGHT) is not None
        expert = {"layer": "h.0", "entropy": None, "largest": 3.0, "smallest": 0.0, "shares": [1.0], "dropped": 0.0}
        assert probe_figures.expert_load([{"step": 0, "layers": [expert]}, {"step": 5, "layers": [expert | {"entropy": 0.9}]}], LIGHT) is not None
        assert probe_figures.expert_load([{"step": 0, "layers": []}], LIGHT) is None
        assert probe_figures.residual_stream([], LIGHT) is None
        assert probe_figures.gradients([], LIGHT) is None
        assert probe_figures.logits([], [], LIGHT) is None
        assert probe_figures.throughput([{"step": 1, "mfu": None}], LIGHT) is None
        assert probe_figures.throughput([{"step": 1, "matmul_utilization": 1.1}], LIGHT) is not None


def test_the_page_shows_the_first_batch_and_utilization(page) -> None:
    _, text = page
    assert "16 sequences of 256 tokens" in text
    assert "&lt;bos&gt;" in text
    assert "relative to the measured matmul peak" in text
    assert "MFU" not in text.partition("relative to the measured matmul peak")[0][-200:]


def test_charts_have_the_numbers_and_both_modes(whole_run) -> None:
    rl = whole_run[1]["rl"]
    pictures = {p.name: p for p in draw_all({"rl": rl})}
    assert set(pictures) == {"reinforcement", "stage_times"}
    rows = [json.loads(line) for line in (rl.path / "metrics.jsonl").read_text().splitlines()]
    rewards = [r["reward"] for r in rows if r.get("split") == "train"]
    lines = [s for s in pictures["reinforcement"].panels[0]["series"] if s["type"] == "line"]
    assert any(s["y"] == pytest.approx(rewards, rel=1e-5) for s in lines)
    assert all(s["color"][0] != s["color"][1] for s in lines)


def test_a_chart_is_the_matplotlib_figure() -> None:
    from feebcore.report.chart import as_json, chart_data
    from feebcore.report.style import Theme, new_figure

    def draw(theme: Theme):
        figure = new_figure()
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [2.0, 1.0]})
        left.plot([1, 2, 3], [1.0, float("nan"), 4.0], color=theme.series[0], gid="</script><b>", marker="o")
        left.axhline(2.0, color=theme.muted)
        left.fill_between([1, 2], [0, 0], [1, 1], color=theme.series[1])
        left.set(title="T", xlabel="step", yscale="log", ylim=(0.5, 8.0))
        right.barh([0, 1], [3.0, 5.0], color=theme.series[2])
        right.set_yticks([0, 1], ["a", "b"])
        right.annotate("3.0", (3.0, 0), xytext=(7, 0), textcoords="offset points")
        return figure

    left, right = chart_data(draw)
    assert (left["title"], left["xlabel"], left["yscale"], left["ylim"], left["weight"], right["weight"]) == ("T", "step", "log", [0.5, 8.0], 1.0, 0.5)
    assert [s["type"] for s in left["series"]] == ["area", "line", "rule"]
    assert left["series"][1]["y"] == [1.0, None, 4.0]
    assert [s["w"] for s in right["series"]] == [3.0, 5.0]
    assert right["yticks"] == [[0.0, "a"], [1.0, "b"]]
    assert right["texts"][0]["dx"] == 7.0
    assert "<" not in as_json([left, right])
    assert json.loads(as_json([left, right])) == [left, right]


def test_numbers_read_well() -> None:
    assert (compact(5_734_400), compact(11_000), compact(300_000), compact(12)) == ("5.73M", "11.0k", "300k", "12")
    assert (tick(200_000), tick(45_678), with_unit(1.5e11, "FLOPs")) == ("200k", "45.7k", "150 GFLOPs")
    assert (byte_size(809), byte_size(31_204_118)) == ("809 B", "31.2 MB")
    assert [figures.duration(s) for s in (0.44, 12.6, 92, 7320)] == ["0.4 s", "13 s", "1 min 32 s", "2 h 2 min"]


def test_the_summary_names_the_number_of_fitted_runs(whole_run) -> None:
    """Not all runs of the sweep: the held-out run is one of them, and others may have diverged."""
    import dataclasses

    sweep = whole_run[1]["sweep"]
    metrics = {**sweep.metrics, "runs": 13, "law": {**sweep.metrics["law"], "num_points": 11}}
    rows = facts._scaling_law({"sweep": dataclasses.replace(sweep, manifest={**sweep.manifest, "metrics": metrics})})
    assert rows[0].text.startswith("Fitted to 11 runs.")
    assert rows[1].topic == "Scaling-law caveats"
