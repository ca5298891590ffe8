"""Scorers of the last events: events one by one, lists, users of train; and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.models import recency
from jaxrec.models.recency import exponential, inverse_power

N_USERS, N_ITEMS, WINDOW = 7, 5, 4


def case(seed=0):
    """Lists of 0, 1 and more events than the window, with repeated items, and a scorer with two kernels."""
    rng = np.random.default_rng(seed)
    lists = [rng.integers(0, N_ITEMS, length) for length in (0, 1, 3, 4, 5, 9, 2)]
    user = np.repeat(np.arange(N_USERS), [len(each) for each in lists])
    train = Ratings(user, np.concatenate(lists), np.ones(len(user)), N_USERS, N_ITEMS)
    kernel = jnp.concatenate([exponential([0.5], window=WINDOW), inverse_power([1.0], window=WINDOW)])
    weight = rng.normal(size=(2, N_ITEMS, N_ITEMS)).astype(np.float32)
    return lists, kernel, weight, recency.recency_scorer(train, weight, kernel, order="position")


def by_hand(events, kernel, weight):
    score = np.zeros(N_ITEMS)
    for d in range(len(kernel)):
        for age, item in enumerate(events[::-1][:WINDOW]):
            score += float(kernel[d, age]) * weight[d, item]
    return score


def test_scores_are_the_sums_of_the_formula():
    lists, kernel, weight, scorer = case()
    expected = [by_hand(events, kernel, weight) for events in lists]
    np.testing.assert_allclose(scorer(np.arange(N_USERS)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scorer(np.array([5, 5, 0])), np.array(expected)[[5, 5, 0]], rtol=1e-5, atol=1e-6)


def test_event_by_event_is_the_state_of_the_batch():
    lists, _, _, scorer = case(1)
    for j, events in enumerate(lists):
        state = scorer.init_state()
        for item in events:
            state = scorer.update(state, int(item))
        np.testing.assert_array_equal(state.item, scorer.events.item[j])
        assert int(state.count) == int(scorer.events.count[j])
        np.testing.assert_allclose(scorer.scores(state), scorer(np.array([j]))[0], rtol=1e-6, atol=1e-7)


def test_several_users_are_updated_at_once():
    lists, _, _, scorer = case(2)
    state = scorer.update(scorer.events, np.arange(N_USERS) % N_ITEMS)
    for j, events in enumerate(lists):
        alone = scorer.state(np.append(events, j % N_ITEMS))
        np.testing.assert_array_equal(state.item[j], alone.item)
        np.testing.assert_allclose(scorer.scores(state)[j], scorer.scores(alone), rtol=1e-6, atol=1e-7)
    assert scorer.scores(state).shape == (N_USERS, N_ITEMS)


def test_an_update_does_not_grow_with_the_history(compilations):
    _, _, _, scorer = case()
    step = jax.jit(scorer.update)
    state = step(scorer.init_state(), 0)
    before = compilations()
    for item in [1, 2, 3, 4] * 5:
        state = step(state, item)
    assert compilations() == before
    assert state.item.shape == (WINDOW,)
    assert state.item.tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize("padding", ["before", "after", "between"])
def test_lists_may_be_padded_anywhere(padding):
    lists, _, _, scorer = case(3)
    rng = np.random.default_rng(0)
    length = 12
    items, where = np.full((N_USERS, length), 99), np.zeros((N_USERS, length), bool)  # 99 is no item
    for j, events in enumerate(lists):
        n = len(events)
        if padding == "between":
            places = np.sort(rng.permutation(length)[:n])
        else:
            places = np.arange(n) if padding == "after" else np.arange(length - n, length)
        items[j, places], where[j, places] = events, True
    state = scorer.state(items, where=where)
    np.testing.assert_array_equal(state.item, scorer.events.item)
    np.testing.assert_array_equal(state.count, scorer.events.count)


def test_an_empty_request_scores_nothing():
    _, _, _, scorer = case()
    empty = scorer.state(np.zeros(0, np.int32))
    np.testing.assert_array_equal(empty.item, scorer.init_state().item)
    assert (np.asarray(scorer.scores(empty)) == 0).all()
    several = scorer.state(np.zeros((3, 0), np.int32))
    assert scorer.scores(several).shape == (3, N_ITEMS)
    assert scorer.state(np.zeros((0, 4), np.int32)).item.shape == (0, WINDOW)
    assert scorer(np.zeros(0, np.int32)).shape == (0, N_ITEMS)


def test_the_gpu_form_is_the_cpu_form():
    _, _, _, scorer = case(4)
    args = scorer.weight, scorer.age_weight, scorer.events.item, scorer.events.count
    forms = [recency._weighted_rows(*args, n_items=N_ITEMS, platform=platform) for platform in ("cpu", "gpu")]
    np.testing.assert_allclose(*forms, rtol=1e-5, atol=1e-6)


def test_scores_are_differentiable_in_the_weights():
    lists, kernel, _, scorer = case(5)

    def total(weight):
        padded = jnp.pad(weight, ((0, 0), (0, 0), (0, 8 - N_ITEMS)))
        one = recency.RecencyScorer(scorer.events, scorer.age_weight, padded, N_ITEMS)
        return jnp.sum(one(np.array([5])))

    gradient = jax.grad(total)(jnp.zeros((2, N_ITEMS, N_ITEMS)))
    for d in range(2):
        expected = np.zeros(N_ITEMS)
        np.add.at(expected, lists[5][::-1][:WINDOW], np.asarray(kernel[d]))
        np.testing.assert_allclose(gradient[d], np.repeat(expected[:, None], N_ITEMS, 1), rtol=1e-5)


def test_scores_are_scaled_per_item():
    _, _, _, scorer = case(6)
    weight = np.arange(1, N_ITEMS + 1) / 2
    found = scorer.scaled(weight)(np.arange(N_USERS))
    np.testing.assert_allclose(found, scorer(np.arange(N_USERS)) * weight[None].astype(np.float32), rtol=1e-5)


def test_kernels():
    np.testing.assert_allclose(exponential(np.array([0.0, 0.5, 1.0]), window=3), [[1, 0, 0], [1, 0.5, 0.25], [1, 1, 1]])
    np.testing.assert_allclose(
        inverse_power([0.0, 1.0, 2.0], window=3), [[1, 1, 1], [1, 1 / 2, 1 / 3], [1, 1 / 4, 1 / 9]]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: exponential([1.5], window=3), r"decays: expected numbers in \[0, 1\]"),
        (lambda s: exponential([np.nan], window=3), "decays: expected numbers"),
        (lambda s: exponential([], window=3), "decays: expected one or more"),
        (lambda s: exponential([0.5], window=0), "window: expected a whole number >= 1"),
        (lambda s: inverse_power([-1.0], window=3), "powers: expected finite numbers >= 0"),
        (lambda s: inverse_power([np.inf], window=3), "powers: expected finite numbers >= 0"),
        (lambda s: s(np.array([N_USERS])), r"users: expected ids in \[0, 7\)"),
        (lambda s: s.scaled(np.ones(4)), r"item_weight: expected shape \(5,\)"),
        (lambda s: s.scaled(np.full(5, np.nan)), "item_weight: expected finite"),
        (lambda s: s.update(s.init_state(), N_ITEMS), r"item: expected ids in \[0, 5\)"),
        (lambda s: s.update(s.init_state(), -1), r"item: expected ids in \[0, 5\)"),
        (lambda s: s.state(np.array([0, 5])), r"items: expected ids in \[0, 5\)"),
        (lambda s: s.state(np.array([0, 1]), where=np.ones(3, bool)), "where"),
        (lambda s: s.state(np.array([0, 1]), where=np.ones(2)), "where: expected a mask"),
    ],
)
def test_bad_requests(call, message, as_users_run):
    with pytest.raises(ValueError, match=message):
        call(case()[-1])


def test_a_scorer_of_matrices_that_do_not_fit(as_users_run):
    train = Ratings([0], [0], [1.0], 1, N_ITEMS)
    kernel = exponential([0.5], window=2)
    for weight, by_age, message in (
        (np.zeros((2, N_ITEMS, N_ITEMS)), kernel, r"matrices: expected one per row of age_weight, \(1, 5, 5\)"),
        (np.zeros((1, N_ITEMS, N_ITEMS)), np.array([[np.nan]]), "age_weight: expected finite"),
        (np.zeros((1, N_ITEMS, N_ITEMS)), np.ones(2), r"age_weight: expected \[D, window\]"),
    ):
        with pytest.raises(ValueError, match=message):
            recency.recency_scorer(train, weight, by_age, order="position")
    with pytest.raises(ValueError, match="no times"):
        recency.recency_scorer(train, np.zeros((1, N_ITEMS, N_ITEMS)), kernel)
