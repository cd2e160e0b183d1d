"""Everything that a user reads is in the field's words, and every option is described.

RETIRED lists words that feeb used to have for ideas that PyTorch's, Hugging Face's and the papers' docs name otherwise.
"""

from __future__ import annotations

import ast
import contextlib
import html
import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest

from feebcore.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
RECIPES = sorted(p for p in (ROOT / "experiments").rglob("*") if p.suffix in (".yaml", ".py", ".sh"))

RETIRED = {
    r"seams?": "kind, extension point",
    r"wirings?": "block",
    r"(the|architecture:|one-) ?dial": "depth",
    r"rate_rules?|rate rules?": "lr_scaling",
    r"by heart": "memorize, overfit",
    r"held[- ]?out (text|sample|score|split|loss|looks?)|looks? at held-out|held_out_sources": "validation split, validation loss",
    r"vectors to scores": "output (LM) head",
    r"(training|long|several|few) windows?|windows? (a|per|of a|in one) (step|optimizer|training)|in windows|windows of [\w,]+ (bytes|tokens)": "sequence",
    r"roll_back|rolled back|bad[_ ]steps?": "rollback, loss spike, non-finite step",
    r"members?": "run",
    r"at work": "in parallel",
    r"trunks?": "stable phase, original run",
    r"findings?": "claim",
    r"round in circles": "degenerate repetition",
    r"even guess": "uniform guess",
    r"num_futures|futures|foretold|further tokens": "MTP outputs",
    r"adopt(s|ed)?": "import",
    r"go(es)? on( from)?|went on|going on|train on from": "continue, resume",
    r"what came (of|out)|what was used": "result, reproducibility",
    r"beside": "next to, vs.",
    r"nothing like it": "no matching artifact",
    r"hardly show|four times in five": "80% power",
    r"(tokens?|flops?|bytes?|milliseconds|ms|steps?|rows?|windows?|files?|lines?|seconds?|processes|queries|updates?) an? "
    r"(token|step|second|run|row|sequence|layer|block|file)": "per",
    r"of the machine's peak|of a matrix product": "MFU, matmul",
    r"it has never seen|its price in|doubts about|distance from the start": "validation loss, regression, caveats, KL to reference policy",
    r"so many|so often": "N",
    r"straight line down|half a cosine|by angles|likeliest": "linear decay, cosine decay, rotary, most likely",
    r"how weights follow|what is minimi[sz]ed": "update rule, training objective",
    r"rate probes?|own rate": "learning-rate search, own learning rate",
    r"warm-ups?": "warmup",
    r"foretold|further (tokens?|heads?)": "MTP outputs, MTP heads",
    r"(left|right) is better": "lower is better, higher is better",
    r"per cent|nats a|a (GPU|row|word)(?= (at|each))": "%, per",
    r"then so with|by itself|(is|are) another one|in the place of|(?<!there )(is|are) no (?!longer\b|more\b|less\b|such\b|better\b|worse\b)[a-z]+": "plain English",
    r"wins over|filled in|so that another|anew|stands? (at|in|before|after)|tells? nothing": "takes precedence, set automatically, again, is",
    r"shares? of (the|a|each|its|tokens|sequences|non-blank)": "fraction of",
    r"learnt|behaviours?|colours?|neighbours?|favours?|centred?|labelled|modelled|"
    r"(initial|normal|optim|factor|memor|summar|organ|token|orthogonal|minim|maxim|serial|penal|general|recogn|util|quant|random|parallel)is(e|ed|es|ing|ation|er)s?": "US spelling",
}
"""Pattern (whole words, any case): what to write instead."""
PATTERN = {word: re.compile(rf"(?<![\w/.-])(?:{word})(?![\w-])", re.IGNORECASE) for word in RETIRED}


def retired_words(text: str) -> list[str]:
    """'word (write: …) in: its line' for every retired word in the text."""
    problems = []
    for line in text.splitlines():
        for word, pattern in PATTERN.items():
            problems += [f"{match.group()!r} (write: {RETIRED[word]}) in: {line.strip()[:160]}" for match in pattern.finditer(line)]
    return problems


def text_of(command: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a feeb command prints, unwrapped."""
    from feeb_pipelines.cli import run_command

    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("NO_COLOR", "1")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        run_command(command)
    return printed.getvalue()


def commands() -> list[list[str]]:
    from feeb_pipelines.cli import make_app

    app = make_app()
    names = [[n] for n in app if not n.startswith("-")]
    return [[], *names, *(["artifacts", n] for n in app["artifacts"] if not n.startswith("-"))]


def test_the_patterns_find_what_they_are_for() -> None:
    for text in (
        "the seam optimizers",
        "learns it by heart",
        "loss on held-out text",
        "5,000 tokens a second",
        "so many steps",
        "two members",
        "initialised",
        "x is no number",
        "a rate probe",
    ):
        assert retired_words(text), text
    assert not retired_words("validation loss per token; otherwise the noise would raise it; held-out problems; there is no file; it is no longer")


@pytest.mark.parametrize("command", commands(), ids=lambda c: " ".join(c) or "feeb")
def test_help_uses_no_retired_words(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of([*command, "--help"], monkeypatch)
    assert "Usage" in text
    assert not retired_words(text)


def test_the_list_of_parts_uses_no_retired_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(["parts"], monkeypatch)
    assert "muon" in text
    assert not (problems := retired_words(text)), "\n".join(problems)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docs_use_no_retired_words(page: Path) -> None:
    assert not (problems := retired_words(page.read_text(encoding="utf-8"))), "\n".join(problems)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_use_no_retired_words(path: Path) -> None:
    assert not (problems := retired_words(path.read_text(encoding="utf-8"))), "\n".join(problems)


def test_the_report_uses_no_retired_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page as text, its captions and alternative texts; the texts inside figures are drawn from the same functions as their tests."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "report"))
    from fake_run import ENVIRONMENT, RECIPE, make_artifacts

    from feebcore.report import build
    from feebcore.report import page as page_of_report

    monkeypatch.setattr(page_of_report, "png", lambda figure: b"\x89PNG")  # every section and caption, without drawing
    folder = tmp_path / "report" / "x-0123456789ab"
    folder.mkdir(parents=True)
    build.build_report(make_artifacts(tmp_path), folder, RECIPE, ENVIRONMENT, lambda done, total: None)
    page = (folder / "report.html").read_text(encoding="utf-8")
    visible = html.unescape(
        re.sub(r"<style>.*?</style>|<script.*?</script>|data:[^\"]*|<pre>.*?</pre>|<[^>]*?(?:alt=\"([^\"]*)\")?[^>]*>", r" \1 ", page, flags=re.S)
    )
    assert "Scaling-law caveats" in visible
    assert not (problems := retired_words(visible)), "\n".join(problems)


def test_texts_in_figures_use_no_retired_words() -> None:
    """Titles, axis labels and legends are string literals of the report's modules."""
    for module in ("figures", "probe_figures", "sweep_figures", "sweep_sections", "curves", "facts", "build"):
        source = (ROOT / "feebcore" / "report" / f"{module}.py").read_text(encoding="utf-8")
        literals = "\n".join(re.findall(r'"([^"\n]*)"', source))
        assert not (problems := retired_words(literals)), "\n".join(problems)


def test_messages_use_no_retired_words() -> None:
    """Error messages, log lines and labels: every string of several words in the packages that is not a docstring."""
    problems = []
    for path in sorted(p for package in ("feebcore", "plugins", "pipelines") for p in (ROOT / package).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and " " in n.value and id(n) not in docstrings]
        problems += [f"{path.relative_to(ROOT)}: {problem}" for problem in retired_words("\n".join(texts))]
    assert not problems, "\n".join(problems)


def test_every_option_of_every_part_and_every_recipe_key_has_a_description() -> None:
    reference = _make_reference()
    missing = []
    for kind, spec in Registry(strict=True).parts():
        if spec.distribution != "feeb":
            continue
        for row in reference.option_rows(spec.config, ""):
            key, description = row.split(" | ")[0].strip("| `"), row.replace(r"\|", "").rstrip(" |").rpartition("|")[2].strip()
            if not description or description in ("identity", "execution", "observation"):
                missing.append(f"{kind}/{spec.name}: {key}")
    assert not missing, f"{len(missing)} options have no description (Field(description=…)):\n" + "\n".join(missing)


def test_a_spec_of_every_kind_documents_its_factory() -> None:
    from feebcore.hookspecs import KINDS

    for kind, spec_class in KINDS.items():
        assert len((spec_class.__doc__ or "").split()) >= 5, f"{kind}: say what the factory is given and returns in the docstring of {spec_class.__name__}"


def test_the_protocol_reference_covers_what_plugins_implement() -> None:
    page = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    names = (
        "BuildContext ForwardContext Batch LanguageModel ModelOutput Source Tokenizer Packing DataOrder Objective Task Problem Callback RunContext Benchmark"
    )
    for name in names.split():
        assert f"### {name}\n" in page, f"docs/protocols.md does not describe {name}"


def _make_reference():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("make_reference", module)
    spec.loader.exec_module(module)
    return module
