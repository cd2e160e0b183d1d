"""Every built-in part keeps the contract of its kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from feebcore.registry import get_registry
from feebcore.testing import candidate, checks_for, run_check
from feebcore.testing.framework import applicable, iterate


def test_part_keeps_its_contract(builtin_part: tuple[str, str], broken) -> None:
    assert broken(builtin_part, False) == ""


@pytest.mark.slow
def test_part_agrees_with_its_compiled_form(compiled_part: tuple[str, str], broken) -> None:
    assert broken(compiled_part, True) == ""


OPTIONS = [
    ("attentions", {"name": "gqa", "num_kv_heads": 1, "qk_norm": True, "bias": True, "logit_softcap": 20.0}),
    ("norms", {"name": "rmsnorm", "learnable": False}),
    ("norms", {"name": "layernorm", "learnable": False}),
    ("lm_heads", {"name": "tied", "logit_softcap": 15.0}),
    ("positions", {"name": "rope", "interleaved": True, "partial_rotary_factor": 0.5}),
    ("feedforwards", {"name": "swiglu", "intermediate_size": 40, "bias": True}),
    ("objectives", {"name": "next_token", "z_loss": 0.01, "label_smoothing": 0.1}),
]


@pytest.mark.parametrize(("kind", "value"), OPTIONS, ids=[f"{s}-{v['name']}-{i}" for i, (s, v) in enumerate(OPTIONS)])
def test_part_keeps_its_contract_with_other_options(kind: str, value: dict[str, object]) -> None:
    from feebcore.parts import resolve_part

    broken = [str(r) for r in iterate(candidate(kind, resolve_part(kind, value))) if not r.passed]
    assert not broken, "\n".join(broken)


def test_two_processes_find_the_gradient_of_one_and_slow_checks_wait_to_be_asked_for() -> None:
    names = {c.name for c in applicable(candidate("norms", "rmsnorm"))}
    assert "causality" in names
    assert "two_rank_parity" in names
    of = lambda name, **options: {c.name for c in applicable(candidate("architectures", name), **options)}  # noqa: E731
    assert of("looped", full=True) - of("looped") == {"inductor_parity"}
    assert of("gpt2", full=True) == of("gpt2")
    control = candidate("norms", "batchnorm")
    for subject in (candidate("norms", "rmsnorm"), control):
        assert [str(r) for r in iterate(subject, ["two_rank_parity"]) if not r.passed] == []
    nameless = replace(control.part, spec=replace(control.part.spec))  # no other process finds it
    assert names - {c.name for c in applicable(candidate("norms", nameless))} == {"two_rank_parity"}
    told = replace(control.part, spec=replace(control.part.spec, breaks=()))
    (result,) = iterate(candidate("norms", told), ["two_rank_parity"])
    assert "from 2 ranks: max abs difference" in result.message


def test_every_check_says_what_a_failure_means() -> None:
    checks = {c.name: c for kind in get_registry()._parts for c in checks_for(kind)}
    assert len(checks) > 35
    assert all(len(c.meaning) > 30 and c.meaning.endswith(".") for c in checks.values())


def test_a_failure_names_the_check_and_its_meaning() -> None:
    from feebcore.testing import Check

    def raises(subject: object) -> None:
        raise RuntimeError("boom")

    result = run_check(Check("explodes", (), "It explodes.", raises), candidate("norms", "rmsnorm"))
    assert not result.passed
    assert str(result) == "norms/rmsnorm: explodes FAILED: it raised RuntimeError: boom. It explodes."


def test_a_negative_control_must_fail_what_it_says_it_breaks() -> None:
    from feebcore.testing import Check

    def fails(subject: object) -> None:
        raise RuntimeError("boom")

    part = candidate("norms", "rmsnorm").part
    control = candidate("norms", replace(part, spec=replace(part.spec, breaks=("explodes", "causality"))))
    assert run_check(Check("explodes", (), "It explodes.", fails), control).passed
    (result,) = (r for r in iterate(control, ["causality"]))
    assert not result.passed
    assert "Take the name out" in str(result)
    (unknown,) = iterate(control, ["well_formed"])
    assert "explodes, which is not a check of norms" in str(unknown)
