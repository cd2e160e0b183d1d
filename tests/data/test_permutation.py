"""The permutation under the data orders: bijective, different each epoch, spread out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeb_data.data_orders.shuffled.shuffled import ShuffledOrder
from feebcore.config import DataOrderConfig
from feebcore.data.permutation import FeistelPermutation
from feebcore.protocols import BuildContext


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**40))
def test_every_epoch_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    image = FeistelPermutation(n, seed)(np.arange(n), epoch)
    assert np.array_equal(np.sort(image), np.arange(n))


def test_a_million_elements_map_one_to_one_and_without_correlation() -> None:
    n = 1_000_003
    image = FeistelPermutation(n, 7)(np.arange(n))
    assert np.array_equal(np.bincount(image, minlength=n), np.ones(n))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.005
    assert abs(np.corrcoef(image, np.arange(n))[0, 1]) < 0.005


def test_small_permutations_are_all_reached() -> None:
    seen = {tuple(FeistelPermutation(3, seed)(np.arange(3))) for seed in range(200)}
    assert len(seen) == 6


def test_index_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        FeistelPermutation(10, 0)(np.array([10]))


def test_order_visits_each_sequence_once_an_epoch_and_is_stateless() -> None:
    order = ShuffledOrder(DataOrderConfig(), BuildContext(num_sequences=97, seed=3))
    samples = np.arange(97 * 3)
    sequences = order(samples)
    for epoch in range(3):
        assert sorted(sequences[epoch * 97 : (epoch + 1) * 97]) == list(range(97))
    assert not np.array_equal(sequences[:97], sequences[97:194])
    assert np.array_equal(order(samples[50:210:7]), sequences[50:210:7])
    assert not np.array_equal(ShuffledOrder(DataOrderConfig(), BuildContext(num_sequences=97, seed=4))(samples), sequences)
