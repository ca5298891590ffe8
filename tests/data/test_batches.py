"""Minibatches have each rating once per epoch, depend only on (seed, epoch), and have one shape."""

import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.data import minibatches


def draw(n=23, weighted=True):
    """The values number the rows from 1, so that padding (0) equals no value."""
    rng = np.random.default_rng(n)
    weights = rng.uniform(0.5, 2, size=n) if weighted else None
    return Ratings(rng.integers(6, size=n), rng.integers(9, size=n), np.arange(1, n + 1), 8, 9, weights=weights)


def order(batches):
    return [value for batch in batches for value in np.asarray(batch.value)[np.asarray(batch.where)].tolist()]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_an_epoch_has_each_rating_once_with_its_columns(size, weighted):
    ratings = draw(weighted=weighted)
    batches = list(minibatches(ratings, size, rng=0)(3))
    assert len(batches) == -(-23 // size)
    seen = []
    for batch in batches:
        where = np.asarray(batch.where)
        row = np.asarray(batch.value)[where].astype(int) - 1
        seen += row.tolist()
        np.testing.assert_array_equal(np.asarray(batch.user)[where], ratings.user[row])
        np.testing.assert_array_equal(np.asarray(batch.item)[where], ratings.item[row])
        if weighted:
            np.testing.assert_array_equal(np.asarray(batch.weights)[where], ratings.weights[row])
        else:
            assert batch.weights is None
    assert sorted(seen) == list(range(23))


def test_the_last_batch_is_padded_to_one_shape():
    *full, last = minibatches(draw(), 5, rng=0)(0)
    assert all(batch.where.all() for batch in full)
    assert last.where.tolist() == [True, True, True, False, False]  # 23 = 4 * 5 + 3
    for batch in (*full, last):
        columns = (batch.user, batch.item, batch.value, batch.where, batch.weights, batch.user_count, batch.item_count)
        assert {column.shape for column in columns} == {(5,)}
        assert 0 <= int(batch.user.min()) <= int(batch.user.max()) < 8
        assert 0 <= int(batch.item.min()) <= int(batch.item.max()) < 9


def test_counts_are_those_of_the_whole_data():
    ratings = draw()
    for batch in minibatches(ratings, 5, rng=1)(0):
        for n in np.flatnonzero(np.asarray(batch.where)):
            assert float(batch.user_count[n]) == (ratings.user == int(batch.user[n])).sum()
            assert float(batch.item_count[n]) == (ratings.item == int(batch.item[n])).sum()


def test_the_weights_of_a_row_add_up_to_one_over_an_epoch():
    ratings = draw()
    share = np.zeros(8)
    for batch in minibatches(ratings, 4, rng=1)(2):
        where = np.asarray(batch.where)
        np.add.at(share, np.asarray(batch.user)[where], 1 / np.asarray(batch.user_count)[where])
    np.testing.assert_allclose(share, [float((ratings.user == j).any()) for j in range(8)], rtol=1e-6)


def test_an_epoch_is_a_function_of_seed_and_number():
    ratings = draw()
    epoch = minibatches(ratings, 5, rng=7)
    first = order(epoch(0))
    assert order(epoch(1)) != first, "shuffled anew"
    assert order(epoch(0)) == first, "the same again, after another epoch"
    assert order(minibatches(ratings, 5, rng=7)(1)) == order(epoch(1)), "a resumed run sees what it would have seen"
    assert order(minibatches(ratings, 5, rng=8)(0)) != first
    assert order(minibatches(ratings, 5, rng=8)(0)) != order(epoch(1)), "seeds and epochs are not added up"
    assert first != sorted(first)


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one(size):
    with pytest.raises(ValueError, match=rf"^batch_size: expected a number >= 1, got {size}"):
        minibatches(draw(), size, rng=0)
