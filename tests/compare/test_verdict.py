"""The sentence claims what the interval allows, and no more."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feebcore.compare.measured import measured
from feebcore.compare.statistics import differences_of
from feebcore.compare.verdict import judge
from feebcore.train.pretrain_config import PretrainConfig

BASE = [1.0, 1.1, 1.2, 1.05, 1.0]


def verdict(losses, base=BASE, effect=0.01):
    (difference,) = differences_of(base, {"new": losses})
    return judge(difference, "base", effect)


@pytest.mark.parametrize(
    ("shifts", "kind"),
    [
        ([-0.05, -0.04, -0.06, -0.05, -0.045], "better"),
        ([0.05, 0.04, 0.06, 0.05, 0.045], "worse"),
        ([0.001, -0.002, 0.0, 0.002, -0.001], "no difference"),
        ([0.05, -0.04, 0.03, -0.05, 0.045], "cannot tell"),
        ([0.0] * 5, "no difference"),
    ],
)
def test_kinds(shifts, kind):
    found = verdict([b + s for b, s in zip(BASE, shifts, strict=True)])
    assert found.kind == kind
    assert kind in found.sentence


def test_no_difference_names_the_largest_one_that_the_interval_holds():
    shifts = [0.001, -0.002, 0.0, 0.002, -0.001]
    found = verdict([b + s for b, s in zip(BASE, shifts, strict=True)])
    half = 2.776445 * np.std(shifts, ddof=1) / 5**0.5
    said = float(re.search(r"larger than ([\d.]+)", found.sentence).group(1))
    assert half <= said <= half + 1e-4


def test_cannot_tell_advises_on_seeds():
    found = verdict([b + s for b, s in zip(BASE, [0.03, -0.02, 0.02, -0.03, 0.02], strict=True)])
    assert found.seeds_needed > 5
    assert f"~{found.seeds_needed} seeds" in found.sentence
    assert found.seeds_at_most > found.seeds_needed


def test_a_difference_below_what_matters_is_said_to_be():
    found = verdict([b - 0.003 + s for b, s in zip(BASE, [0.0001, -0.0001, 0.0, 0.0002, -0.0002], strict=True)])
    assert found.kind == "better"
    assert "less than the smallest effect of interest, 0.01" in found.sentence


def test_a_side_that_diverges_is_never_called_better_or_as_good():
    better = verdict([0.95, None, 1.15, 1.0, 0.951])
    assert better.kind == "cannot tell"
    assert "1 of 5 runs of new diverged" in better.sentence
    same = verdict([1.0, None, 1.201, 1.0505, 0.999])
    assert same.kind == "cannot tell"
    assert verdict([1.05, None, 1.252, 1.1, 1.049]).kind == "worse"
    base = [1.0, None, 1.2, 1.05, 1.0]
    assert verdict([1.05, 1.0, 1.252, 1.1, 1.049], base).kind == "cannot tell"
    assert verdict([0.95, 1.0, 1.152, 1.0, 0.949], base).kind == "better"


def test_too_few_finished_pairs_are_no_verdict():
    found = verdict([0.9, None, None, None, None])
    assert (found.kind, found.seeds_needed) == ("cannot tell", None)


@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=8), st.floats(0.001, 0.1))
def test_no_sentence_says_more_than_the_interval(shifts, effect):
    base = [1.0] * len(shifts)
    (d,) = differences_of(base, {"new": [1.0 + s for s in shifts]})
    found = judge(d, "base", effect)
    low, high = d.paired.low, d.paired.high
    if found.kind == "better":
        assert high < 0
    elif found.kind == "worse":
        assert low > 0
    elif found.kind == "no difference":
        assert max(abs(low), abs(high)) <= effect


def test_a_page_says_of_which_weights_and_how_much_text_its_numbers_are() -> None:
    plain, averaged = PretrainConfig(), PretrainConfig(ema_decay=0.9)
    assert "weights after the last step, on all of the validation text" in measured([plain], [None, None])
    assert "moving average of the weights (ema_decay), on 26% of the validation text" in measured([averaged], [0.2604])
    assert "after the last step, or of their moving average in recipes with ema_decay" in measured([plain, averaged], [None])
    assert "25% or 26% of" in measured([plain], [0.26, 0.25])
