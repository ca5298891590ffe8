"""The sequence ridge against the regression written out row by row in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, evaluation, models, solvers
from jaxrec.models.recency import exponential, inverse_power
from jaxrec.solvers import _sequence_sums

N_USERS, N_ITEMS = 8, 6
KERNELS = {
    "last": exponential([0.0], window=1),
    "decays": exponential([0.3, 0.9], window=20),  # longer than any sequence
    "mixed": jnp.concatenate([inverse_power([0.5, 1.0], window=3), exponential([1.0], window=3)]),  # shorter than some
}


def events(seed=0, n=45):
    """Repeated items, a user with one event, one without any, and an item without events; rows in order."""
    rng = np.random.default_rng(seed)
    user = np.insert(rng.integers(0, N_USERS - 2, n), 7, N_USERS - 2)
    return Ratings(user, rng.integers(0, N_ITEMS - 1, n + 1), np.ones(n + 1), N_USERS, N_ITEMS)


def sequences_of(ratings):
    return [ratings.item[ratings.user == j] for j in range(ratings.n_users)]


def features_at(sequence, t, kernel):
    """h(t): what came before position t, each item at its age."""
    h = np.zeros((len(kernel), N_ITEMS))
    for d, weights in enumerate(np.asarray(kernel, np.float64)):
        for age in range(1, min(t, len(weights)) + 1):
            h[d, sequence[t - age]] += weights[age - 1]
    return h.reshape(-1)


def target_at(sequence, t, next_weight):
    y = np.zeros(N_ITEMS)
    for step, weight in enumerate(next_weight):
        if t + step < len(sequence):
            y[sequence[t + step]] += weight
    return y


def rows_of(ratings, kernel, next_weight=(1.0,), backward_weight=0.0):
    """(H, Y, the weight of each row, the user of each forward row that is the last of its user, or -1)."""
    h, y, weight, last_of = [], [], [], []
    for j, sequence in enumerate(sequences_of(ratings)):
        for direction, each in ((1.0, sequence), (backward_weight, sequence[::-1])):
            for t in range(1, len(each)):
                h.append(features_at(each, t, kernel))
                y.append(target_at(each, t, next_weight))
                weight.append(direction)
                last_of.append(j if direction == 1.0 and each is sequence and t == len(each) - 1 else -1)
    return np.array(h), np.array(y), np.array(weight), np.array(last_of)


def fit(h, y, weight, l2):
    penalty = np.broadcast_to(np.asarray(l2, np.float64), h.shape[1])
    return np.linalg.solve(h.T @ (weight[:, None] * h) + np.diag(penalty), h.T @ (weight[:, None] * y))


OPTIONS = {
    "plain": {},
    "future": {"next_weight": (1.0, 0.5, 0.25)},
    "backward": {"backward_weight": 0.3},
    "both": {"next_weight": (1.0, 0.4), "backward_weight": 1.5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_sums_are_those_of_the_rows(kernel, options):
    ratings = events()
    sums = solvers.sequence_sums(ratings, kernel, order="position", **options)
    h, y, weight, _ = rows_of(ratings, kernel, **options)
    np.testing.assert_allclose(sums.gram, h.T @ (weight[:, None] * h), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums.cross, h.T @ (weight[:, None] * y), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(sums.item_count, np.bincount(ratings.item, minlength=N_ITEMS))


@pytest.mark.parametrize("chunk", [1, 4, 45])  # of 46 events: chunks that end with a lag's pairs, and within them
def test_sums_are_the_same_in_chunks(chunk, monkeypatch):
    options = {"age_weight": KERNELS["decays"], "order": "position"} | OPTIONS["both"]
    whole = solvers.sequence_sums(events(), **options)
    monkeypatch.setattr(_sequence_sums, "CHUNK", chunk)
    chunks = solvers.sequence_sums(events(), **options)
    for name in whole._fields:
        np.testing.assert_allclose(getattr(chunks, name), getattr(whole, name), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_weights_solve_the_normal_equations(options):
    ratings, kernel = events(1), KERNELS["mixed"]
    h, y, weight, _ = rows_of(ratings, kernel, **options)
    count = np.maximum(np.bincount(ratings.item, minlength=N_ITEMS), 1)
    rng = np.random.default_rng(0)
    per_feature = rng.uniform(0.5, 2, (3, N_ITEMS)).astype(np.float32)
    for l2 in (0.7, np.float32([0.5, 1.0, 3.0]), per_feature):
        each = np.broadcast_to(l2[:, None] if np.ndim(l2) == 1 else l2, (3, N_ITEMS)).reshape(-1)
        scorer = solvers.sequence_ridge(
            ratings, age_weight=kernel, l2=l2, popularity_power=0.5, order="position", **options
        )
        expected = fit(h, y, weight, each) / count**0.5
        np.testing.assert_allclose(scorer.weight[:, :, :N_ITEMS].reshape(-1, N_ITEMS), expected, rtol=1e-3, atol=1e-5)


def test_scores_of_users_are_their_features_times_the_weights():
    ratings, kernel = events(2), KERNELS["decays"]
    scorer = solvers.sequence_ridge(ratings, age_weight=kernel, l2=1.0, order="position")
    weight = np.asarray(scorer.weight, np.float64)[:, :, :N_ITEMS].reshape(-1, N_ITEMS)
    h = np.array([features_at(sequence, len(sequence), kernel) for sequence in sequences_of(ratings)])
    np.testing.assert_allclose(scorer(np.arange(N_USERS)), h @ weight, rtol=1e-5, atol=1e-6)
    assert (np.asarray(scorer(np.array([N_USERS - 1]))) == 0).all()  # no events


def test_order_by_time_is_order_by_position_of_the_sorted_rows():
    ratings, rng = events(3), np.random.default_rng(0)
    shuffled = rng.permutation(len(ratings))
    timed = Ratings(
        ratings.user[shuffled], ratings.item[shuffled], np.ones(len(ratings)), N_USERS, N_ITEMS, time=shuffled
    )
    by_time = solvers.sequence_ridge(timed, age_weight=KERNELS["mixed"], l2=1.0)
    by_position = solvers.sequence_ridge(ratings, age_weight=KERNELS["mixed"], l2=1.0, order="position")
    np.testing.assert_allclose(by_time.weight, by_position.weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(by_time.events.item, by_position.events.item)


def test_a_markov_chain_is_its_simplest_case():
    ratings = events(4)
    scorer = solvers.sequence_ridge(ratings, age_weight=KERNELS["last"], l2=2.0, order="position")
    follows, left = np.zeros((N_ITEMS, N_ITEMS)), np.zeros(N_ITEMS)
    for sequence in sequences_of(ratings):
        np.add.at(follows, (sequence[:-1], sequence[1:]), 1)
        np.add.at(left, sequence[:-1], 1)
    np.testing.assert_allclose(scorer.weight[0, :, :N_ITEMS], follows / (left + 2)[:, None], rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_leaving_a_position_out_is_fitting_without_it(options):
    ratings, kernel, l2 = events(5), KERNELS["mixed"], 0.8
    found = solvers.leave_last_position_out(
        ratings, age_weight=kernel, l2=l2, popularity_power=0.3, order="position", **options
    )
    h, y, weight, last_of = rows_of(ratings, kernel, **options)
    scale = np.maximum(np.bincount(ratings.item, minlength=N_ITEMS), 1) ** -0.3
    assert found.user.tolist() == [j for j, sequence in enumerate(sequences_of(ratings)) if len(sequence) > 1]
    for index, j in enumerate(found.user.tolist()):
        row = int(np.flatnonzero(last_of == j)[0])
        keep = np.arange(len(h)) != row
        refit = fit(h[keep], y[keep], weight[keep], l2)
        np.testing.assert_allclose(found.score[index], h[row] @ refit * scale, rtol=2e-3, atol=2e-4)
        assert int(found.item[index]) == sequences_of(ratings)[j][-1]
        assert 0 <= float(found.leverage[index]) < 1


def test_left_out_for_some_users_only():
    ratings, options = events(5), {"age_weight": KERNELS["decays"], "l2": 1.0, "order": "position"}
    every = solvers.leave_last_position_out(ratings, **options)
    some = solvers.leave_last_position_out(ratings, users=np.array([3, 1, N_USERS - 2]), **options)
    assert some.user.tolist() == [3, 1]  # one event has nothing before it
    for index, j in enumerate(some.user.tolist()):
        np.testing.assert_allclose(some.score[index], every.score[every.user.tolist().index(j)], rtol=1e-4, atol=1e-6)


def test_strengths_and_powers_are_vmapped():
    sums = solvers.sequence_sums(events(6), KERNELS["decays"], order="position")
    l2, power = jnp.array([0.5, 2.0, 8.0]), jnp.array([0.0, 0.2])
    solve = lambda l2, power: solvers.solve_sequence_ridge(sums, l2=l2, popularity_power=power)
    grid = jax.jit(jax.vmap(jax.vmap(solve, (None, 0)), (0, None)))(l2, power)
    assert grid.shape == (3, 2, 2, N_ITEMS, N_ITEMS)
    for a in range(3):
        for b in range(2):
            np.testing.assert_allclose(grid[a, b], solve(l2[a], power[b]), rtol=1e-4, atol=1e-6)


def test_it_is_a_scorer_of_evaluate():
    rest, test = data.splits.leave_last(events(7), order="position")
    scorer = solvers.sequence_ridge(rest, age_weight=KERNELS["decays"], l2=1.0, order="position")
    table = np.asarray(scorer(np.arange(N_USERS)))
    options = {"k": 2, "overlap": "drop", "metrics": ["ndcg", "hit_rate"]}
    found = evaluation.evaluate(scorer, rest, test, batch_size=3, **options)
    by_table = evaluation.evaluate(lambda t, users: t[users], rest, test, state=jnp.asarray(table), **options)
    assert found.mean == pytest.approx(by_table.mean)


def test_an_item_met_first_in_test_is_scored_and_not_found():
    train = Ratings([0, 0, 1, 1], [0, 1, 0, 1], np.ones(4), 2, 4)
    test = Ratings([0], [3], [1.0], 2, 4)
    scorer = solvers.sequence_ridge(train, age_weight=KERNELS["last"], l2=1.0, popularity_power=0.5, order="position")
    assert float(scorer(np.array([0]))[0, 3]) == 0
    assert evaluation.evaluate(scorer, train, test, k=1, metrics=["hit_rate"]).mean["hit_rate@1"] == 0


def test_a_second_fit_compiles_nothing(compilations):
    options = {"age_weight": KERNELS["decays"], "order": "position"}
    solvers.sequence_ridge(events(8), l2=1.0, **options)
    before = compilations()
    solvers.sequence_ridge(events(8), l2=2.0, popularity_power=0.1, **options)
    assert compilations() == before


def test_what_does_not_fit_is_refused_with_its_size(monkeypatch):
    needed = solvers.sequence_ridge_memory(N_ITEMS, 3)
    assert needed == 4 * 2 * ((3 * N_ITEMS) ** 2 + 3 * N_ITEMS**2)
    monkeypatch.setattr(_sequence_sums, "_free_bytes", lambda: needed - 1)
    with pytest.raises(MemoryError, match="3 rows of age_weight take .* GiB.*Use 2 rows"):
        solvers.sequence_ridge(events(), age_weight=KERNELS["mixed"], l2=1.0, order="position")
    monkeypatch.setattr(_sequence_sums, "_free_bytes", lambda: 1)
    with pytest.raises(MemoryError, match="Leave out rare items"):
        solvers.sequence_ridge(events(), age_weight=KERNELS["mixed"], l2=1.0, order="position")


GOOD = {"age_weight": KERNELS["mixed"], "l2": 1.0, "order": "position"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"l2": 0.0}, "l2: expected finite numbers > 0"),
        ({"l2": np.nan}, "l2: expected finite numbers > 0"),
        ({"l2": np.ones(2)}, r"l2: expected a number, one per row of age_weight \(3,\)"),
        ({"age_weight": np.ones(3)}, r"age_weight: expected \[D, window\]"),
        ({"age_weight": np.ones((0, 3))}, r"age_weight: expected \[D, window\]"),
        ({"age_weight": np.array([[1.0, np.nan]]), "l2": 1.0}, "age_weight: expected finite"),
        ({"next_weight": ()}, r"next_weight: expected \[horizon\]"),
        ({"next_weight": (1.0, np.inf)}, "next_weight: expected finite"),
        ({"backward_weight": -1.0}, "backward_weight: expected finite numbers >= 0"),
        ({"popularity_power": np.nan}, "popularity_power: expected finite"),
        ({"popularity_power": np.ones(2)}, "popularity_power: expected one number"),
        ({"order": "time"}, "no times"),
        ({"order": "rank"}, "order: expected one of"),
    ],
)
def test_bad_options(changed, message, as_users_run):
    for function in (solvers.sequence_ridge, solvers.leave_last_position_out):
        with pytest.raises(ValueError, match=message):
            function(events(), **(GOOD | changed))


def test_bad_events():
    for ratings, message in (
        (Ratings([0, 1], [0, 1], np.ones(2), 2, 3), "two events or more"),
        (Ratings([], [], [], 2, 3), "two events or more"),
        (Ratings([0, 0], [0, 1], np.ones(2), 1, 2, weights=[1, 2]), "without weights"),
    ):
        with pytest.raises(ValueError, match=message):
            solvers.sequence_ridge(ratings, **GOOD)


def test_a_penalty_below_the_precision_is_refused():
    """Two blocks that are the same: H'H is singular."""
    kernel = exponential([0.5, 0.5], window=3)
    with pytest.raises(ValueError, match="positive definite"):
        solvers.sequence_ridge(events(), age_weight=1e4 * kernel, l2=1e-30, order="position")


def test_kernels_are_in_the_models():
    assert models.recency.exponential is exponential
