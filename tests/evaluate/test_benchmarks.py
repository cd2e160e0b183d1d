from __future__ import annotations

import pytest

from feeb_evals.benchmarks.python_parses.python_parses import extract_function
from feebcore.errors import DataError
from feebcore.evaluate.benchmark import headline, summarize
from feebcore.parts import resolve_part
from feebcore.testing.evaluation import small_target


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x",
        "\n\ndef f(x):\n    return x\n\n\nimport os\n",
        "def f(self):\n        return 1\n\n    def g(self):\n        broken(\n",  # a method: ends at the dedent
        "def f(\n    a,\n    b,\n):\n    return a\n",  # a header over several lines
        'def f():\n    """Text\nnot indented\n    """\n    return 1\nx = 1\n',
        "def f(x): return x\n",
        "async def f():\n    pass\nclass A:\n",
        "def f():\n    if x:\n        y\n    return 3\nelse:\n",
    ],
)
def test_a_whole_function_is_found(text: str) -> None:
    function = extract_function(text)
    assert function is not None
    assert function.startswith(("def f", "async def f"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no function",
        "def f(x):\n",
        "def f(x):\n    return (x\n",
        "def f(:\n    pass\n",
        "def f(x):\n    if x:\n",
        "def f():\n    x = = 1\n    y\n",
        "def f():\n    \0\n",
    ],
)
def test_what_does_not_parse_is_no_function(text: str) -> None:
    assert extract_function(text) is None


def test_a_sample_that_was_cut_off_loses_its_unfinished_line() -> None:
    text = "def f(x):\n    y = x\n    return fo("
    assert extract_function(text) is None
    assert extract_function(text, cut=True) == "def f(x):\n    y = x"


def test_nothing_is_executed() -> None:
    assert extract_function("def f(x=print('no')):\n    pass\nraise SystemExit\n") is not None


def test_summaries_name_the_headline_after_the_benchmark_and_others_beside_it() -> None:
    result = {"sampled": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}, "greedy": {"value": 0.7}, "tokens": 3}
    assert summarize({"task": {"rl": result}}) == {"task": {"rl": 0.5}, "task_greedy": {"rl": 0.7}}
    assert headline(result) == ("sampled", result["sampled"])
    assert headline({"tokens": 3}) is None


def test_bits_per_byte_of_nothing_is_an_error_that_says_what_to_do() -> None:
    from types import SimpleNamespace

    from feeb_evals.benchmarks.bits_per_byte import BitsPerByteConfig
    from feeb_evals.benchmarks.bits_per_byte.bits_per_byte import BitsPerByte

    with pytest.raises(DataError, match=r"the validation split is empty.*split_modulus"):
        BitsPerByte(BitsPerByteConfig()).run(SimpleNamespace(store=SimpleNamespace(num_documents=0)))


def test_braces_in_a_prompt_are_text():
    """Only {name} is replaced: a prompt of Python has braces of its own."""
    part = resolve_part("benchmarks", {"name": "python_parses", "prompt": "x = {'a': {}}\ndef {name}", "names": ["f"], "samples": 2, "max_new_tokens": 4})
    with small_target() as target:
        assert {row["prompt"] for row in part.build().run(target)["samples"]} == {"x = {'a': {}}\ndef f"}
