"""Whether what the model writes after `def` parses as Python. Nothing is ever executed.

A sample is right when some of its whole lines, from `def` to a dedent below the body or to the sample's end, are
exactly one function by `ast.parse`. A sample cut off by its length loses its last, unfinished line first.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import TYPE_CHECKING, Any

from feebcore.errors import plural
from feebcore.evaluate.benchmark import Benchmark, EvaluatedModel
from feebcore.evaluate.intervals import dump, wilson
from feebcore.generate.engine import encode_prompt, generate
from feebcore.protocols import BuildContext

if TYPE_CHECKING:
    from feeb_evals.benchmarks.python_parses import PythonParsesConfig

MAX_SAMPLES = 24


class PythonParses(Benchmark):
    title = "Sampled functions that parse"
    better = "higher"
    percent = True

    def __init__(self, config: PythonParsesConfig, context: BuildContext | None = None) -> None:
        self._config = config

    def run(self, target: EvaluatedModel) -> dict[str, Any]:
        config = self._config
        names = [config.names[i % len(config.names)] for i in range(config.samples)]
        texts = [config.prompt.replace("{name}", name) for name in names]
        prompts = [encode_prompt(target.tokenizer, text) for text in texts]
        room = target.model.seq_len - max(map(len, prompts))
        if room < 1:
            raise ValueError(f"python_parses: the prompt takes {plural(max(map(len, prompts)), 'token')}, the model's context is {target.model.seq_len}")
        logits_processors = [part.build() for part in config.logits_processors]
        rows: list[dict[str, Any]] = []
        for at in range(0, len(prompts), config.batch_size):
            part = slice(at, at + config.batch_size)
            numbers = range(len(prompts))[part]
            completions = generate(
                target.model,
                prompts[part],
                min(config.max_new_tokens, room),
                target.tokenizer.eos_id,
                logits_processors,
                seed=target.seed,
                device=target.device,
                rows=numbers,
            )
            for i, completion in zip(numbers, completions, strict=True):
                text = texts[i] + target.tokenizer.decode(completion.tokens)
                function = extract_function(text, cut=completion.finish_reason == "length")
                rows.append({"prompt": texts[i], "text": text, "function": function, "parses": function is not None})
            target.progress(len(rows), len(prompts))
        return {"parses": dump(wilson(sum(r["parses"] for r in rows), len(rows))), "samples": rows[:MAX_SAMPLES]}


def extract_function(text: str, cut: bool = False) -> str | None:
    """The first function of `text` as whole lines, None when no function parses. cut: the last line is unfinished."""
    start = re.search(r"^(async +)?def\b", text, re.MULTILINE)
    if not start:
        return None
    lines = text[start.start() :].split("\n")
    if cut:
        lines = lines[:-1]
    for end in _ends(lines):
        candidate = "\n".join(lines[:end]).rstrip()
        if _is_one_function(candidate):
            return candidate
    return None


def _ends(lines: list[str]) -> list[int]:
    """Where a function that begins on line 0 may end: before each line that is indented less than its body, and at the end."""
    indents = [len(line) - len(line.lstrip()) if line.strip() else None for line in lines]
    body = next((indent for indent in indents[1:] if indent is not None), None)
    if body is None:
        return [len(lines)]
    return [i for i, indent in enumerate(indents) if i > 0 and indent is not None and (indent < body or indent == 0)] + [len(lines)]


def _is_one_function(source: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a sampled string is the model's business
        try:
            body = ast.parse(source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return len(body) == 1 and isinstance(body[0], ast.FunctionDef | ast.AsyncFunctionDef)
