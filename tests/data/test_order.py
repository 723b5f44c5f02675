"""The balance between labels in the order of training examples."""

from collections import Counter

import numpy as np
import pytest

from vae.data.order import BalancedOrder

LABELS = np.array(["large"] * 80 + ["small"] * 16 + ["tiny"] * 4)


def epochs(balance, count, seed=0):
    order = BalancedOrder(LABELS, seed, balance)
    return np.array([order.at(position) for position in range(100 * count)]).reshape(count, 100)


@pytest.mark.parametrize(
    ("balance", "expected"), [(1.0, (33, 34, 33)), (0.5, (60, 27, 13)), (1e-6, (80, 16, 4))]
)
def test_labels_have_their_share_in_every_epoch(balance, expected):
    for epoch in epochs(balance, 3):
        found = Counter(LABELS[epoch])
        assert tuple(found[name] for name in ("large", "small", "tiny")) == expected


def test_records_of_a_label_are_equally_frequent():
    counts = np.bincount(epochs(1.0, 24).ravel(), minlength=100)
    for name in np.unique(LABELS):
        here = counts[name == LABELS]
        assert here.max() - here.min() <= 1


def test_the_order_is_a_function_of_the_seed():
    np.testing.assert_array_equal(epochs(0.5, 2), epochs(0.5, 2))
    assert (epochs(0.5, 1) != epochs(0.5, 1, seed=1)).any()
    first, second = epochs(0.5, 2)
    assert first.tolist() != second.tolist()
    # A label is no block of the epoch.
    assert len(set(LABELS[first[:20]])) > 1
