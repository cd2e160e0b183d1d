"""Garbage collection at fixed steps."""

from __future__ import annotations

import gc

import pytest
from small_run import Cycle, run, section

from feebcore.errors import FeebError


def test_python_collects_every_so_many_steps_only_and_as_before_after_the_run(tmp_path, monkeypatch):
    enabled, collected, step = [], [], 0

    def at(number):
        def note():
            nonlocal step
            step = number
            enabled.append(gc.isenabled())

        return note

    collect = gc.collect
    monkeypatch.setattr(gc, "collect", lambda: (collected.append(step), collect())[1])
    quiet = run(tmp_path / "a", section(max_steps=10, callbacks=[]), checkpoint=False, save=False).model
    collected.clear()
    loud = run(tmp_path / "b", section(max_steps=10, callbacks=[], gc_every=4), Cycle({n: at(n) for n in range(10)}), checkpoint=False, save=False).model
    assert enabled == [False] * 10
    assert collected == [0, 3, 7], "at the start, and after the fourth and the eighth step"
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert all(a.equal(b) for a, b in zip(loud.parameters(), quiet.parameters(), strict=True))


def test_an_error_leaves_the_collector_as_it_was(tmp_path):
    def fail() -> None:
        raise FeebError("power cut")

    with pytest.raises(FeebError, match="power cut"):
        run(tmp_path, section(gc_every=4), Cycle({2: fail}), checkpoint=False)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
