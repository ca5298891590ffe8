"""Spectra and low-pass filters against dense formulas in NumPy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.models.linear import histories
from jaxrec.solvers import linear

N_USERS, N_ITEMS, RANK = 40, 30, 7


def random_case(seed=0):
    """(train, X, the normalized R, its right singular vectors and values); the last user and item have nothing."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((N_USERS - 1, N_ITEMS - 1)) < 0.3)
    x = np.zeros((N_USERS, N_ITEMS))
    x[user, item] = 1
    r = power(x.sum(1), -0.5)[:, None] * x * power(x.sum(0), -0.5)
    _, s, vt = np.linalg.svd(r, full_matrices=False)
    return Ratings(user, item, np.ones(len(user)), N_USERS, N_ITEMS), x, r, vt.T, s


def power(degree, exponent):
    return np.where(degree > 0, np.where(degree > 0, degree, 1) ** exponent, 0)


TRAIN, X, R, V, S = random_case()
DEGREE = X.sum(0)
GRAPH = R.T @ R
MANY_STEPS = {"power_steps": 30}


def assert_scores(scorer, expected):
    np.testing.assert_allclose(scorer(np.arange(N_USERS)), expected, atol=2e-5)
    of_user = TRAIN.user == 3
    np.testing.assert_allclose(scorer.scores(TRAIN.item[of_user][None])[0], expected[3], atol=2e-5)


def test_the_spectrum_is_that_of_numpy():
    found = linear.spectrum(linear.normalized(histories(TRAIN)), rank=RANK, **MANY_STEPS)
    np.testing.assert_allclose(found.singular_values, S[:RANK], atol=1e-5)
    projector = V[:, :RANK] @ V[:, :RANK].T
    np.testing.assert_allclose(found.item_vectors @ found.item_vectors.T, projector, atol=1e-4)


def test_more_power_steps_are_more_exact():
    matrix = linear.normalized(histories(TRAIN))
    errors = [
        np.abs(linear.spectrum(matrix, rank=2, power_steps=steps).singular_values - S[:2]).max() for steps in (0, 4)
    ]
    assert errors[1] < errors[0] / 5


def test_a_rank_beyond_the_matrix_has_zero_vectors():
    train = Ratings([0, 0, 1, 1, 2, 3], [0, 1, 0, 1, 2, 2], np.ones(6), 5, 6)  # rank 2
    found = linear.spectrum(histories(train), rank=5)
    np.testing.assert_allclose(found.singular_values, [2, np.sqrt(2), 0, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(found.item_vectors[:, 2:], 0)
    lengths = np.linalg.norm(found.item_vectors[:, :2], axis=0)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_keys_change_the_start_and_not_the_result():
    matrix = linear.normalized(histories(TRAIN))
    found = [linear.spectrum(matrix, rank=3, key=jax.random.key(seed), **MANY_STEPS) for seed in (0, 1)]
    np.testing.assert_allclose(found[0].singular_values, found[1].singular_values, atol=1e-5)
    early = [linear.spectrum(matrix, rank=3, key=jax.random.key(seed), power_steps=0) for seed in (0, 1)]
    assert not np.allclose(early[0].singular_values, early[1].singular_values, atol=1e-5)


def test_gf_cf_is_a_low_pass_of_equal_weights_and_a_hop():
    v, alpha = V[:, :RANK], 0.3
    gf_cf = X @ GRAPH + alpha * X * power(DEGREE, -0.5) @ v @ v.T * power(DEGREE, 0.5)
    scorer = linear.low_pass(TRAIN, rank=RANK, hop_weight=1 / alpha, **MANY_STEPS)
    assert_scores(scorer, gf_cf / alpha)


@pytest.mark.parametrize(("hop_weight", "hop_user_exponent"), [(0.0, 0.5), (3.3, 0.5), (0.5, 0.15)])
def test_low_pass_weighs_directions_and_degrees(hop_weight, hop_user_exponent):
    v, s = V[:, :RANK], S[:RANK]
    expected = X * power(DEGREE, -0.4) * 1.0 @ (v * s**1.2) @ v.T * power(DEGREE, 0.4)
    half = power(X.sum(1), -hop_user_exponent)[:, None] * X * power(DEGREE, -0.5)
    expected += hop_weight * (X * power(DEGREE, -0.2) @ (half.T @ half) * power(DEGREE, -0.1))
    scorer = linear.low_pass(
        TRAIN,
        rank=RANK,
        spectral_power=0.6,
        degree_exponent=0.4,
        hop_weight=hop_weight,
        hop_exponents=(0.2, -0.1),
        hop_user_exponent=hop_user_exponent,
        **MANY_STEPS,
    )
    assert_scores(scorer, expected)


def test_filters_share_a_spectrum():
    spectrum = linear.spectrum(linear.normalized(histories(TRAIN)), rank=12, **MANY_STEPS)
    own, shared = (linear.low_pass(TRAIN, rank=RANK, **each) for each in (MANY_STEPS, {"spectrum": spectrum}))
    np.testing.assert_allclose(own(np.arange(4)), shared(np.arange(4)), atol=2e-5)


@pytest.mark.parametrize("coefficients", [(0.0, 1.0), (0.0, 2.0, -1.0), (0.3,), (0.1, -0.5, 0.2, 0.7)])
def test_turbo_cf_is_a_polynomial_of_the_graph(coefficients):
    r = power(X.sum(1), -0.6)[:, None] * X * power(DEGREE, -0.4)
    filters = sum(a * np.linalg.matrix_power(r.T @ r, k) for k, a in enumerate(coefficients))
    assert_scores(linear.turbo_cf(TRAIN, coefficients=coefficients, user_exponent=0.6), X @ filters)


@pytest.mark.parametrize("order", [1, 2, 8])
def test_cheby_cf_is_its_recurrence(order):
    argument = np.eye(N_ITEMS) - 2 * GRAPH
    terms = [np.eye(N_ITEMS), argument]
    for _ in range(2, order + 1):
        terms.append(2 * argument @ terms[-1] - terms[-2])
    filters = sum(c * term for c, term in zip(linear.plateau(order, 1.5), terms, strict=True))
    v = V[:, :RANK]
    before, after = power(DEGREE, -0.4), power(DEGREE, 0.4)
    options = {"order": order, "flatness": 1.5, "degree_exponent": 0.4}
    assert_scores(linear.cheby_cf(TRAIN, **options), X * before @ filters * after)
    with_ideal = linear.cheby_cf(TRAIN, rank=RANK, ideal_weight=0.2, **options, **MANY_STEPS)
    assert_scores(with_ideal, X * before @ (filters + 0.2 * v @ v.T) * after)


def test_the_plateau_falls_from_one_to_zero_and_is_flat_between():
    t = np.linspace(-1, 1, 201)
    height = np.polynomial.chebyshev.chebval(t, linear.plateau(40, 5.0))
    np.testing.assert_allclose(height, 0.5 - 0.5 * np.sign(t) * np.abs(t) ** 5, atol=0.07)
    assert np.abs(height[80:121] - 0.5).max() < 0.01
    # by hand: order 1 has targets (1, 0) read at the nodes -+ cos(pi / 4)
    np.testing.assert_allclose(linear.plateau(1, 2.0), [0.5, -np.sqrt(0.5)], atol=1e-12)


def test_a_filter_differentiates_by_its_weights():
    scorer = linear.low_pass(TRAIN, rank=RANK, hop_weight=2.0)

    def objective(weights):
        operator = scorer.operator.__class__(scorer.operator.operators, weights)
        return jnp.sum(operator.train_user_scores(jnp.asarray(X[:3].T, jnp.float32), jnp.arange(3)) ** 2)

    weights = jnp.array([1.0, 2.0])
    ideal, hop = (
        objective(jnp.array([1.0, 0.0])),
        objective(jnp.array([0.0, 1.0])),
    )
    mixed = (objective(jnp.array([1.0, 1.0])) - ideal - hop) / 2
    expected = [2 * ideal + 4 * mixed, 2 * mixed + 4 * hop]  # of (a, b) -> a^2 ideal + 2 a b mixed + b^2 hop
    np.testing.assert_allclose(jax.grad(objective)(weights), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear.low_pass(TRAIN, rank=N_ITEMS + 1), "rank: expected at most 30, the smaller of 40 users and 30"),
        (lambda: linear.low_pass(TRAIN, rank=0), "rank: expected a whole number >= 1"),
        (lambda: linear.low_pass(TRAIN, rank=3, hop_weight=np.nan), "hop_weight: expected finite numbers"),
        (lambda: linear.low_pass(TRAIN, rank=3, hop_exponents=(0.1, np.inf)), "hop_exponents: expected finite numbers"),
        (lambda: linear.low_pass(TRAIN, rank=3, key=0), r"key: expected one random key, such as jax.random.key\(0\)"),
        (
            lambda: linear.low_pass(TRAIN, rank=3, spectrum=linear.Spectrum(jnp.ones((N_ITEMS, 2)), jnp.ones(2))),
            "spectrum: expected vectors of 30 items and at least rank 3, got 30 items and rank 2",
        ),
        (
            lambda: linear.spectrum(histories(TRAIN), rank=3, power_steps=-1),
            "power_steps: expected a whole number >= 0",
        ),
        (lambda: linear.turbo_cf(TRAIN, coefficients=()), "coefficients: expected at least one"),
        (lambda: linear.cheby_cf(TRAIN, order=0), "order: expected a whole number >= 1"),
        (lambda: linear.cheby_cf(TRAIN, flatness=0.0), "flatness: expected a finite number > 0"),
        (lambda: linear.cheby_cf(TRAIN, ideal_weight=0.2), "rank: expected the ideal pass's"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "fit",
    [
        lambda train: linear.low_pass(train, rank=2, hop_weight=1.0),
        lambda train: linear.turbo_cf(train),
        lambda train: linear.cheby_cf(train, rank=2, ideal_weight=0.1, degree_exponent=0.3),
    ],
)
def test_nothing_at_all_scores_nothing(fit):
    scorer = fit(Ratings([], [], [], 4, 3))
    assert np.isfinite(scorer(np.arange(4))).all()
    assert np.isfinite(scorer.scores(np.array([[0, 2]]))).all()
