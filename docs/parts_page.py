"""docs/parts.md: what each part computes and costs, and how it did in the standard run. `make_reference.py` calls this.

Equations, options and references are of the specs, costs of the standard model with that part (declared counts, which the
contract compares with measured ones), results of docs/standard-run.json, where there are any for these very options.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from feebcore.registry import Registry
from feebcore.specs import PartSpec

ROOT = Path(__file__).resolve().parents[1]

SYMBOLS = """\
r       the stream [T, C]; r_t of one token, r_l before layer l       C, T   d_model, tokens of a window
x       what a sublayer is given, in most blocks norm(r)             L, l   num_layers, a layer, from 0 where nothing else is said
y       what a sublayer returns                                       H, h   num_heads, a head;  D: head_dim
a, m    attention and feedforward of a block, m2 and a2 second ones   V, F   vocab_size, hidden width of a feedforward
norm    the model's norm, each time with a gain of its own            W, E   learned matrices, learned tables
z       what the head reads, norm(r_L)                                t, s   places of a query and of a key, from 0
A B     matrix product      A * B  element by element      [A; B]  one below the other      [y_h]_h  all heads side by side
rot_t   the position's rotation of queries and keys        b       the position's bias on scores; both absent unless it says so
att(q, k, v) = softmax(q kᵀ / √(width of q) + b) v         softmax over s ≤ t in the same document, values v_s
rms(x) = x / √(mean(x²) + eps)      lerp(a, b, c) = a + c (b − a)      sg: no gradient      B_l: a whole block
optimizers: w weights, g gradient, η rate, λ weight_decay, β1 β2 betas, μ momentum, n the step from 1; averages begin at 0
schedules: f multiplies the rates; after a warmup, in which it is (n + 1) / warmup, n the step from 0; p the share of the decay
that is over, 0 to 1; φ final_fraction"""


def parts_page(registry: Registry, default_text: Callable[[Any], str]) -> str:
    """default_text: how the default of an option's field is shown."""
    standard = standard_run()
    results = json.loads(standard.RESULTS.read_text(encoding="utf-8")) if standard.RESULTS.exists() else {}
    if results and results["settings"] != standard.settings():
        results = {}  # of another standard model
    table = [result_row(standard, results, kind, spec) for kind in standard.KINDS for spec in built_in(registry, kind)]
    lines = [
        "# Parts",
        "",
        "What each part computes, where it is from, what it costs, and how it did in one short run that is the same for all. What a",
        "kind asks of its parts, with an example, stands in [extension-points.md](extension-points.md). This page is written by `make docs` from the specs and",
        f"from {'[standard-run.json](standard-run.json)' if results else 'standard-run.json, which is not there yet'}; a test keeps it up to date.",
        "",
        *(f"- [{kind}](#{kind})" for kind in standard.KINDS),
        "- [the standard run](#the-standard-run)",
        "",
        "In equations:",
        "",
        "```text",
        SYMBOLS,
        "```",
        "",
        "Equations are those of the default options, or name the option. Defaults are listed; what options mean is said in extension-points.md.",
    ]
    for kind in standard.KINDS:
        lines += ["", f"## {kind}"]
        for spec in built_in(registry, kind):
            lines += ["", f"**{spec.name}**: {spec.summary}{references(spec.reference)}", "", "```text", spec.equation or "(not given)", "```"]
            if options := ", ".join(
                f"`{key}: {default_text(field).strip('`')}`" for key, field in spec.config.model_fields.items() if not key.endswith("_content")
            ):
                lines += ["", f"Options: {options}. [Meaning](extension-points.md#{kind})"]
    return "\n".join([*lines, "", *standard_section(standard, results), *table]) + "\n"


def standard_section(standard: ModuleType, results: dict[str, Any]) -> list[str]:
    sizes, baseline = standard.SIZES, standard.BASELINE
    parts = ", ".join(f"`{text_of(p)}`" for p in baseline.values())
    lines = [
        "## The standard run",
        "",
        f"A byte model of {sizes['num_layers']} layers, d_model {sizes['d_model']} and {sizes['num_heads']} heads, made of {parts}, in which one part at a time is",
        f"exchanged. It reads {standard.STEPS} batches of {standard.BATCH} windows of {standard.WINDOW} bytes of the standard library's source without tests, the same in the same",
        "order for every part of a seed, in fp32, uncompiled, on one thread; at most 1 M parameters and 30 s of training. Three seeds.",
        f"Bits per byte are of {standard.SCORED * standard.BATCH * standard.WINDOW:,} bytes of files that no run trained on.",
        "",
        "What it can say is little. The model is tiny and far from trained. Only the baseline's rate was looked for, among four; twice that rate",
        "was a little better for it. Optimizers have the rates found for them on a model twice as wide; so their rows compare those rates",
        "as much as the optimizers. What needs size, length, time, another rate or another",
        "initialization looks worse here than it is. The interval is that of Student's t for three paired",
        "differences, 4.3 standard errors to each side, so only large effects stand out. A part is called better or worse only where its 95 %",
        "interval leaves out zero, and no allowance is made for so many comparisons: of a hundred parts that change nothing,",
        "about five would be called so. `feeb compare` is the instrument for a real question.",
        "",
        "Parameters, FLOPs a token (forward, all T² of attention, heads for further tokens left out) and cache bytes a token (fp32) are those that",
        "the model with the part declares; speed is tokens a second of training, as a multiple of the baseline's measured on the same",
        "thread in the same run; tokens a second are of this machine.",
        "",
    ]
    if not results:
        lines += [f"It has not been run yet: `{standard.COMMAND}`, then `make docs`.", ""]
    else:
        versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
        lines += [f"Run on {results['date']} with `{results['command']}`, {results['machine']}; {versions}; text {results['text']['digest']}.", ""]
        scores = runs_of(results, "baseline", "baseline", {})
        if scores:
            values = ", ".join(f"{r['bits_per_byte']:.3f}" for r in scores.values() if "failed" not in r)
            lines += [f"The baseline: {values} bits per byte (seeds {', '.join(str(s) for s in scores)}).", ""]
    return [
        *lines,
        "| kind | part | options other than default | parameters | FLOPs a token | cache bytes a token | tokens/s | speed | bits per byte − baseline's [95 %] | |",
        "|---|---|---|--:|--:|--:|--:|--:|---|---|",
    ]


def result_row(standard: ModuleType, results: dict[str, Any], kind: str, spec: PartSpec) -> str:
    is_baseline = standard.BASELINE[kind]["name"] == spec.name
    own = {k: v for k, v in standard.BASELINE[kind].items() if k != "name"} if is_baseline else standard.own_options(kind, spec.name)
    options = ", ".join(f"{k} {text_of(v)}" for k, v in own.items())
    note = standard.NOTES.get(f"{kind}/{spec.name}", "")
    costs = cost(standard, kind, spec.name)
    counts = [f"{costs.total:,}", f"{costs.flops_per_token:,.0f}", f"{costs.cache_bytes_per_token:,}"]
    head = [kind, f"`{spec.name}`", "; ".join(filter(None, [options, note])), *counts]
    runs = runs_of(results, "baseline", "baseline", {}) if is_baseline else runs_of(results, kind, spec.name, own)
    if not runs:
        return cells(*head, "", "", "not run", "baseline" if is_baseline else "")
    if failed := next((r["failed"] for r in runs.values() if "failed" in r), None):
        return cells(*head, "", "", f"failed: {failed}", "")
    rates = [f"{mean([r['tokens_per_second'] for r in runs.values()]):,.0f}", f"{mean([r['relative_speed'] for r in runs.values()]):.2f}"]
    if is_baseline:
        return cells(*head, *rates, f"0 ({mean([r['bits_per_byte'] for r in runs.values()]):.3f})", "baseline")
    return cells(*head, *rates, *difference(runs, runs_of(results, "baseline", "baseline", {})))


def difference(runs: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> tuple[str, str]:
    """Mean of the paired differences with its interval, and `better`, `worse` or nothing."""
    from feebcore.compare.statistics import paired

    pairs = [(runs[s]["bits_per_byte"], baseline[s]["bits_per_byte"]) for s in sorted(runs.keys() & baseline.keys()) if "failed" not in baseline[s]]
    if len(pairs) < 3:
        return f"{len(pairs)} of 3 seeds", ""
    found = paired([ours - theirs for ours, theirs in pairs])
    verdict = "worse" if found.low > 0 else "better" if found.high < 0 else ""
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", verdict


def runs_of(results: dict[str, Any], kind: str, name: str, options: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """By seed; those with other options are of another table."""
    found = [r for r in results.get("runs", []) if (r["kind"], r["name"], r["options"]) == (kind, name, options)]
    return {r["seed"]: r for r in sorted(found, key=lambda r: r["seed"])}


def cost(standard: ModuleType, kind: str, name: str) -> Any:
    from feebcore.model.build import count_architecture
    from feebcore.parts import resolve_part

    return count_architecture(resolve_part("architectures", standard.architecture(standard.chosen(kind, name))), standard.VOCABULARY, standard.WINDOW)


def built_in(registry: Registry, kind: str) -> list[PartSpec]:
    return [spec for _, spec in registry.parts(kind) if spec.distribution == "feeb"]


def references(text: str) -> str:
    """` (…)` with links to arXiv and the web."""
    linked = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    linked = re.sub(r"(?<!\()https://(?!arxiv\.org/abs)([^\s,;)]+)", r"[\1](https://\1)", linked)
    return f" ({linked})" if linked else ""


def text_of(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    inner = ", ".join(f"{k} {text_of(v)}" for k, v in value.items() if k != "name")
    return f"{value['name']} ({inner})" if inner else str(value["name"])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def cells(*values: str) -> str:
    return "| " + " | ".join(v.replace("|", "\\|").replace("\n", " ") for v in values) + " |"


def standard_run() -> ModuleType:
    """benchmarks/standard_run.py, which says what the standard model is."""
    spec = importlib.util.spec_from_file_location("standard_run", ROOT / "benchmarks" / "standard_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
