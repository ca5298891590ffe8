"""Candidate sources and their merging: equal to sets and lists, with padding, exclusions and refused arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import retrieval
from jaxrec.retrieval import candidates
from jaxrec.retrieval.candidates import Table, favorites, look_up, merge, nearest, top_of_groups


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
@pytest.mark.parametrize("score", [retrieval.dot, retrieval.cosine, retrieval.negative_squared_distance])
def test_nearest_equals_a_full_sort_without_the_item_itself(rows, score):
    rng = np.random.default_rng(0)  # integers give ties, but rounding would break ties of their cosines
    x = np.float32(rng.normal(size=(9, 3)) if score is retrieval.cosine else rng.integers(-2, 3, (9, 3)))
    allowed = np.arange(9) != 5
    table = nearest(
        jnp.asarray(x), 4, score=score, allowed=jnp.asarray(allowed), batch_size=rows, block=4, progress=False
    )
    scores = np.array(score(jnp.asarray(x), jnp.asarray(x)))
    scores[np.arange(9), np.arange(9)] = scores[:, 5] = -np.inf
    np.testing.assert_array_equal(table.ids, np.argsort(-scores, axis=1, kind="stable")[:, :4])
    assert bool(table.where.all())


def test_nearest_pads_the_lists_of_small_catalogs():
    one = nearest(jnp.ones((1, 2)), 10, progress=False)
    assert one.ids.shape == (1, 10)
    assert not bool(one.where.any())
    three = nearest(jnp.eye(3), 10, progress=True)
    assert three.where.sum(axis=1).tolist() == [2, 2, 2]


def test_nearest_refuses_invalid_arguments():
    with pytest.raises(ValueError, match="expected finite vectors"):
        nearest(jnp.full((2, 2), jnp.nan), progress=False)
    with pytest.raises(ValueError, match="k, batch_size, block >= 1"):
        nearest(jnp.ones((2, 2)), 0)


def test_top_of_groups_lists_the_best_members_of_each_group(as_users_run):
    member = jnp.array([[True, True, False, True], [False, False, True, False], [False] * 4])
    table = top_of_groups(jnp.array([1.0, 3.0, 9.0, 3.0]), member, 2)
    assert table.ids.tolist() == [[1, 3], [2, 0], [0, 0]]
    assert table.where.tolist() == [[True, True], [True, False], [False, False]]
    per_group = top_of_groups(jnp.arange(12.0).reshape(3, 4) * jnp.array([[-1.0], [1.0], [1.0]]), member, 1)
    assert per_group.ids[:2].tolist() == [[0], [2]]
    with pytest.raises(ValueError, match="expected member"):
        top_of_groups(jnp.ones(3), member, 2)
    with pytest.raises(ValueError, match="1 <= k <= n_items"):
        top_of_groups(jnp.ones(4), member, 5)


def test_favorites_masks_groups_that_were_never_viewed():
    groups, where = favorites(jnp.array([0.0, 5.0, 0.0, 7.0]), 3)
    assert groups[where].tolist() == [3, 1]


def by_sets(sources, size, seen, allowed):
    """(id, sources that proposed it) in the order in which the ids were first proposed."""
    found = {}
    for number, (ids, where) in enumerate(sources):
        for i, valid in zip(ids, where, strict=True):
            if valid and i not in seen and allowed[i]:
                found.setdefault(int(i), set()).add(number)
    return list(found.items())[:size]


@pytest.mark.parametrize("size", [1, 5, 20, 40])
@pytest.mark.parametrize("seed", range(4))
def test_merge_equals_merging_by_sets(seed, size):
    rng = np.random.default_rng(seed)
    draw = lambda n: (rng.integers(0, 30, n), rng.random(n) < 0.8)
    sources, (seen, seen_where) = [draw(7), draw(0), draw(12), draw(5)], draw(9)
    allowed = rng.random(30) < 0.8
    arrays = [(jnp.asarray(ids), jnp.asarray(where)) for ids, where in sources]
    run = lambda *a: merge(a[0], size=size, exclude=a[1], allowed=a[2])
    args = arrays, (jnp.asarray(seen), jnp.asarray(seen_where)), jnp.asarray(allowed)
    for got in (run(*args), jax.jit(run)(*args)):
        expected = by_sets(sources, size, set(seen[seen_where].tolist()), allowed)
        assert got.ids.shape == (size,)
        assert got.proposed_by.shape == (size, 4)
        assert [
            (int(i), set(np.flatnonzero(n).tolist()))
            for i, n in zip(got.ids[got.where], got.proposed_by[got.where], strict=True)
        ] == expected
        assert got.where.tolist() == [True] * len(expected) + [False] * (size - len(expected))
        assert not got.ids[~got.where].any()
        assert not got.proposed_by[~got.where].any()


def test_a_user_who_has_seen_everything_gets_no_candidates():
    everything = jnp.arange(5), jnp.ones(5, bool)
    assert not bool(merge([everything], size=3, exclude=everything).where.any())
    assert not bool(merge([everything], size=3, allowed=jnp.zeros(5, bool)).where.any())


def test_merge_can_be_vmapped_over_users():
    ids = jnp.array([[0, 1], [1, 1]])
    got = jax.vmap(lambda ids: merge([(ids, jnp.ones(2, bool))], size=2))(ids)
    assert got.ids.tolist() == [[0, 1], [1, 0]]
    assert got.where.tolist() == [[True, True], [True, False]]


def test_merge_and_look_up_accept_an_empty_history():
    table = Table(jnp.array([[1, 2]]), jnp.ones((1, 2), bool))
    empty = look_up(table, jnp.zeros(3, jnp.int32), where=jnp.zeros(3, bool))
    assert empty[0].shape == (6,)
    assert not bool(empty[1].any())
    assert look_up(table, jnp.array([0]))[0].tolist() == [1, 2]


def test_merge_refuses_invalid_arguments(as_users_run):
    with pytest.raises(ValueError, match="at least one source"):
        merge([], size=3)
    with pytest.raises(ValueError, match="size >= 1"):
        merge([(jnp.zeros(1, jnp.int32), jnp.ones(1, bool))], size=0)
    good = jnp.zeros(2, jnp.int32), jnp.ones(2, bool)
    with pytest.raises(ValueError, match=r"source 1: expected ids \[c\] and where \[c\]"):
        candidates.merge([good, (jnp.zeros(2, jnp.int32), jnp.ones(3, bool))], size=3)
