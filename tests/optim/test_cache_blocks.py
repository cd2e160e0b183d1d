"""Elementwise work in blocks covers every element once, in step across the lists."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feeb_optim import cache_blocks as module


@settings(max_examples=50, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=3).map(tuple), min_size=1, max_size=6), piece=st.integers(1, 40))
def test_blocks_cover_each_element_once_and_in_step(shapes, piece):
    before = module.BLOCK
    module.BLOCK = piece
    try:
        count = torch.arange(1000.0)
        a = [count[: torch.Size(s).numel()].reshape(s).clone() for s in shapes]
        b = [torch.zeros(s) for s in shapes]
        for x, y in module.cache_blocks(a, b):
            assert [len(t) for t in x] == [len(t) for t in y]
            assert sum(map(len, x)) <= 2 * piece * torch.get_num_threads()
            torch._foreach_add_(y, x)
            torch._foreach_add_(x, 1.0)
    finally:
        module.BLOCK = before
    for s, x, y in zip(shapes, a, b, strict=True):
        assert y.equal(count[: torch.Size(s).numel()].reshape(s))
        assert x.equal(y + 1)


def test_tensors_that_are_not_contiguous_come_whole():
    a = [torch.zeros(4, 6).mT, torch.zeros(3)]
    assert [[t is u for t, u in zip(lists[0], a, strict=True)] for lists in module.cache_blocks(a)] == [[True, True]]
