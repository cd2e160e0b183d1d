"""The profiler callback: a trace and a table of the steps that were asked for, and no change of the training."""

from __future__ import annotations

import gzip
import json

import pytest
from small_run import Cycle, run, section

from feebcore.errors import FeebError


@pytest.mark.parametrize("max_steps", [9, 5])
def test_a_profile_is_written_of_a_whole_run_and_of_one_that_ends_first_and_changes_no_bit(tmp_path, max_steps):
    part = {"name": "profile", "start": 4, "steps": 3}
    logged: list[str] = []
    loud = run(tmp_path / "a", section(callbacks=[part], max_steps=max_steps), checkpoint=False, save=False, logged=logged).model
    events = json.loads(gzip.decompress((tmp_path / "a" / "profile" / "trace.json.gz").read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::addmm" or event.get("name") == "aten::mm" for event in events)
    assert "Self CPU" in (tmp_path / "a" / "profile" / "operators.txt").read_text()
    assert any("profile of steps 5 to" in text for text in logged)
    quiet = run(tmp_path / "b", section(callbacks=[], max_steps=max_steps), checkpoint=False, save=False).model
    assert all(a.equal(b) for a, b in zip(loud.parameters(), quiet.parameters(), strict=True))


def test_an_error_in_the_middle_ends_the_profiler(tmp_path):
    def fail() -> None:
        raise FeebError("power cut")

    part = {"name": "profile", "start": 2, "steps": 6}
    with pytest.raises(FeebError, match="power cut"):
        run(tmp_path / "a", section(callbacks=[part], max_steps=9), Cycle({4: fail}), checkpoint=False)
    run(tmp_path / "b", section(callbacks=[part], max_steps=9), checkpoint=False, save=False)
    assert (tmp_path / "b" / "profile" / "trace.json.gz").exists()
