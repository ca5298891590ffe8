"""Requests of raw lists: what is mapped, dropped, unknown and refused; served answers against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, sequence_requests, serving
from jaxrec.models import recency
from jaxrec.retrieval import candidates

N_ITEMS, WINDOW, K = 6, 3, 4
IDS = np.array([40, 7, 99, 1, 23, 5])


def scorer():
    train = Ratings([0], [1], [1.0], 1, N_ITEMS)
    weight = np.random.default_rng(0).normal(size=(1, N_ITEMS, N_ITEMS)).astype(np.float32)
    return recency.recency_scorer(train, weight, recency.exponential([0.5], window=WINDOW), order="position"), weight[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("next") / "next.jaxrec"
    score = lambda state, item, count: state.next_scores(item, count)
    sequence_requests.save(path, score, scorer()[0], item_ids=IDS, window=WINDOW, k=K)
    return sequence_requests.load(path)


def by_hand(sequence, weight):
    known = [int(np.flatnonzero(each == IDS)[0]) for each in sequence if each in IDS][::-1][:WINDOW]
    score = sum((0.5**age * weight[i].astype(np.float64) for age, i in enumerate(known)), np.zeros(N_ITEMS))
    best = [i for i in np.argsort(-score, kind="stable") if i not in known][:K]
    return (IDS[best].tolist(), score[best]) if known else ([], np.zeros(0))


def test_served_lists_are_those_of_a_loop(served):
    lists = [[40], [7, 7, 7, 7], [5, 23, 1, 99, 7, 40], [], [123, 40], [123], [99, 1, 99]]
    found = served(lists, skip_unknown=True)
    for n, sequence in enumerate(lists):
        item, score = by_hand(sequence, scorer()[1])
        assert found.item[n] == item
        np.testing.assert_allclose(found.score[n, : len(score)], score, rtol=1e-5, atol=1e-6)
        assert (found.score[n, len(score) :] == -np.inf).all()
    assert found.dropped.tolist() == [0, 1, 3, 0, 0, 0, 0]
    assert found.unknown == [[], [], [], [], [123], [123], []]
    assert set(served.served.platforms) == {"cpu", "cuda", "tpu"}


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[40], [123, 7]], r"sequences\[1\]: 123 is not among the 6 known ids.*skip_unknown=True"),
        ([["40"]], "1 is not '1'"),
        ([40, 7], "expected one list of raw ids per request, got 40 at position 0"),
        (["ab"], "expected one list of raw ids per request"),
        ([[1.5]], "expected raw ids that are integers or strings"),
        ([], "expected at least one request"),
    ],
)
def test_bad_requests_are_named(served, sequences, message, as_users_run):
    with pytest.raises(ValueError, match=message):
        served(sequences)


def test_empty_requests_and_masks(tmp_path):
    path = tmp_path / "next.jaxrec"
    empty, allowed = np.arange(N_ITEMS, dtype=np.float32), np.arange(N_ITEMS) != 5
    score = lambda weight, item, count: weight[item[0]]
    options = {"item_ids": list("abcdef"), "window": 2, "k": 2, "platforms": ["cpu"], "exclude_seen": False}
    sequence_requests.save(path, score, jnp.eye(N_ITEMS), empty=empty, allowed=allowed, **options)
    served = sequence_requests.load(path)
    assert served([[], ["c"]]).item == [["e", "d"], ["c", "a"]]
    serving.save(path, lambda state, x: state["a"] * x, {"a": jnp.ones(())}, np.ones(1, np.float32), platforms=["cpu"])
    with pytest.raises(ValueError, match="expected a request of sequences"):
        sequence_requests.load(path)


def test_a_sequence_is_one_more_source():
    one, weight = scorer()
    item, count = jnp.array([2, 0, 0]), jnp.array(1)
    found = candidates.top_of_sequence(one.next_scores, item, count, 3, n_items=N_ITEMS)
    expected = [i for i in np.argsort(-weight[2]) if i != 2][:3]
    assert found.ids.tolist() == expected
    popular = jnp.array([0, 1, 2]), jnp.ones(3, bool)
    merged = candidates.merge([found[:2], popular], size=6, exclude=(jnp.array([0]), jnp.array([True])))
    assert merged.ids[merged.where].tolist() == list(dict.fromkeys(i for i in [*expected, 0, 1, 2] if i != 0))
    again = candidates.top_of_sequence(
        one.next_scores, item, count, 3, n_items=N_ITEMS, exclude=(np.array(expected[:1]), np.ones(1, bool))
    )
    assert again.ids.tolist()[:2] == expected[1:]
    batch = jax.vmap(lambda i, c: candidates.top_of_sequence(one.next_scores, i, c, 3, n_items=N_ITEMS))
    assert batch(item[None], count[None]).ids[0].tolist() == expected


@pytest.mark.parametrize(
    ("item", "count", "k", "message"),
    [
        ([6, 0, 0], 1, 2, r"item: expected ids in \[0, 6\), got 6"),
        ([-1, 0, 0], 1, 2, r"item: expected ids in \[0, 6\), got -1"),
        ([0, 0, 0], 4, 2, "count: expected between 0 and the window's 3, got 4"),
        ([0, 0, 0], 1, 7, "k: expected between 1 and the catalog's 6"),
        ([[0, 0, 0]], 1, 2, r"expected item \[window\] and one count"),
        ([0, 0], 1, 2, "item: expected the last 3 items"),
    ],
)
def test_bad_sequences_are_named(item, count, k, message, as_users_run):
    with pytest.raises(ValueError, match=message):
        candidates.top_of_sequence(scorer()[0].next_scores, np.array(item), count, k, n_items=N_ITEMS)
