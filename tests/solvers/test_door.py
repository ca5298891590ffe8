"""Arguments that the solvers refuse and accept: strengths, tables, ids, types, both_sides, extreme numbers.

Run without the strict modes of the other tests, as users run them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr

from jaxrec import Ratings, bayes, data, models, solvers
from jaxrec.bayes import new_user, ordinal, side_information
from jaxrec.bayes.side_information import Priors
from jaxrec.solvers import ridge

N_USERS, N_ITEMS, RANK = 7, 6, 2
KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("as_users_run")


@functools.cache
def random_ratings(seed=0, weights=None):
    """Random ratings; `weights` is a function of their number."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.6)
    return Ratings(user, item, rng.integers(1, 6, len(user)), N_USERS, N_ITEMS, weights=weights and weights(len(user)))


def both_sides(ratings=None):
    """(by_user, by_item) of the ratings, by default `random_ratings()`."""
    return _default_sides() if ratings is None else _make_sides(ratings)


@functools.cache
def _default_sides():
    return _make_sides(random_ratings())


def _make_sides(ratings):
    return data.rows(ratings, "user", min_length=8), data.rows(ratings, "item", min_length=8)


@functools.cache
def factors(*, item_bias=True, mu=3.5):
    return models.init(N_USERS, N_ITEMS, RANK, key=KEY, item_bias=item_bias, mu=mu if item_bias else None)


WITHOUT_ITEM_BIAS = {"item_bias": False}  # as implicit ALS needs it
QUIET = {"progress": False, "sweeps": 1}
X, Y, WHERE = np.eye(4, 3, dtype=np.float32), np.arange(4, dtype=np.float32), np.ones(4, bool)

# Every function that takes strengths: a call with the strength under test, and whether 0 is allowed.
STRENGTHS = {
    "als l2": (lambda s: solvers.als(both_sides(), init=factors(), l2=s, **QUIET), False),
    "als l2_bias": (lambda s: solvers.als(both_sides(), init=factors(), l2=1.0, l2_bias=s, **QUIET), True),
    "sweep l2": (lambda s: solvers.sweep(factors(), *both_sides(), l2=s), False),
    "sweep l2_bias": (lambda s: solvers.sweep(factors(), *both_sides(), l2=1.0, l2_bias=s), True),
    "dense_sweep l2": (lambda s: solvers.dense_sweep(factors(), data.dense(random_ratings()), l2=s), False),
    "dense_sweep l2_bias": (
        lambda s: solvers.dense_sweep(factors(), data.dense(random_ratings()), l2=1.0, l2_bias=s),
        True,
    ),
    "fold_in l2": (lambda s: solvers.fold_in(factors(), both_sides()[0], l2=s), False),
    "fold_in l2_bias": (lambda s: solvers.fold_in(factors(), both_sides()[1], l2=1.0, l2_bias=s), True),
    "leave_one_out l2": (lambda s: solvers.leave_one_out(factors(), both_sides()[0], l2=s), False),
    "leave_one_out l2_bias": (lambda s: solvers.leave_one_out(factors(), both_sides()[0], l2=1.0, l2_bias=s), True),
    "implicit_als l2": (
        lambda s: solvers.implicit_als(both_sides(), init=factors(**WITHOUT_ITEM_BIAS), l2=s, **QUIET),
        False,
    ),
    "implicit_als unobserved_weight": (
        lambda s: solvers.implicit_als(
            both_sides(), init=factors(**WITHOUT_ITEM_BIAS), l2=1.0, unobserved_weight=s, **QUIET
        ),
        False,
    ),
    "implicit_sweep l2": (lambda s: solvers.implicit_sweep(factors(**WITHOUT_ITEM_BIAS), *both_sides(), l2=s), False),
    "implicit_sweep unobserved_weight": (
        lambda s: solvers.implicit_sweep(factors(**WITHOUT_ITEM_BIAS), *both_sides(), l2=1.0, unobserved_weight=s),
        False,
    ),
    "implicit_cost l2": (lambda s: solvers.implicit_cost(factors(**WITHOUT_ITEM_BIAS), both_sides()[0], l2=s), False),
    "implicit_cost unobserved_weight": (
        lambda s: solvers.implicit_cost(factors(**WITHOUT_ITEM_BIAS), both_sides()[0], l2=1.0, unobserved_weight=s),
        False,
    ),
    "implicit_fold_in l2": (
        lambda s: solvers.implicit_fold_in(factors(**WITHOUT_ITEM_BIAS), both_sides()[0], l2=s),
        False,
    ),
    "implicit_fold_in unobserved_weight": (
        lambda s: solvers.implicit_fold_in(factors(**WITHOUT_ITEM_BIAS), both_sides()[0], l2=1.0, unobserved_weight=s),
        False,
    ),
    "frequency_scaled_l2 l2": (lambda s: solvers.frequency_scaled_l2(random_ratings(), s), False),
    "frequency_scaled_l2 unobserved_weight": (
        lambda s: solvers.frequency_scaled_l2(random_ratings(), 1.0, unobserved_weight=s),
        False,
    ),
    "solve_user l2": (lambda s: solvers.solve_user(X[:, :2], Y, WHERE, l2=s), True),
    "solve_user l2_bias": (lambda s: solvers.solve_user(X, Y, WHERE, l2=1.0, l2_bias=s), True),
    "solve_item l2": (lambda s: solvers.solve_item(X, Y, Y, WHERE, l2=s), True),
    "factorize precision": (lambda s: ridge.factorize(ridge.normal_equations(X, Y), s), True),
    "priors": (
        lambda s: [
            side_information.check_priors(Priors(**{name: value}))
            for name in ("beta", "dof", "scale_matrix", "noise", "strength", "cuts")
            for value in ((s, (1.0, s)) if name in ("noise", "strength") else (s,))
        ],
        False,
    ),
    "gamma shape": (lambda s: side_information.gamma(s, 1.0, key=KEY), False),
    "gamma rate": (lambda s: side_information.gamma(1.0, s, key=KEY), False),
    "bayes.gibbs_sweep priors": (
        lambda s: bayes.gibbs_sweep(chain(), data.dense(random_ratings()), key=KEY, priors=Priors(beta=s)),
        False,
    ),
    "gibbs priors": (lambda s: run_gibbs(priors=Priors(scale_matrix=s)), False),
    "side_information.draw priors": (lambda s: side_information.draw(chain().users, (), Priors(dof=s), key=KEY), False),
    "draw_cuts scale": (
        lambda s: ordinal.draw_cuts(np.float32([0.0]), Y, 1 + Y, np.zeros(4, np.int32), WHERE, s, key=KEY),
        False,
    ),
}


@functools.cache
def chains():
    return bayes.init_chains(N_USERS, N_ITEMS, RANK, key=KEY, chains=2)


@functools.cache
def chain():
    return jax.tree.map(lambda a: a[0], chains())


def run_gibbs(train=None, state=None, test=None, **options):
    options = {"key": KEY, "mu": 3.0, "sweeps": 1, "burn_in": 0, "progress": False} | options
    train = data.dense(random_ratings()) if train is None else train
    state, test = chains() if state is None else state, random_ratings() if test is None else test
    return bayes.gibbs(train, test, init=state, **options)


@pytest.mark.parametrize("name", STRENGTHS)
def test_strengths_that_are_not_finite_and_positive_are_refused(name):
    call, zero_is_allowed = STRENGTHS[name]
    for strength in (-1.0, np.nan, np.inf, -np.inf, jnp.array(-0.5), *(() if zero_is_allowed else (0.0, 0))):
        with pytest.raises(ValueError, match="finite"):
            call(strength)
    if zero_is_allowed:
        call(0)


WRONG_LENGTHS = [jnp.ones(1), jnp.ones(N_USERS + 1), jnp.ones((N_USERS, 1)), jnp.ones(N_ITEMS)]
PER_ROW = [name for name in STRENGTHS if name.split()[-1].startswith("l2") and not name.startswith(("solve", "freq"))]


@pytest.mark.parametrize("name", PER_ROW)
@pytest.mark.parametrize("wrong", WRONG_LENGTHS, ids=lambda a: str(a.shape))
def test_strengths_of_another_length_than_the_rows_are_refused(name, wrong):
    call, _ = STRENGTHS[name]
    for strength in (wrong, (wrong, 1.0), (1.0, jnp.ones(N_ITEMS + 1)), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match=r"expected a number or"):
            call(strength)
    call((jnp.ones(N_USERS), jnp.ones(N_ITEMS)))


# Parts of factors that do not fit the other parts.
WRONG_PARTS = {
    "w": {"w": jnp.ones((N_USERS - 1, RANK))},
    "w's rank": {"w": jnp.ones((N_USERS, RANK + 1))},
    "b": {"b": jnp.ones(N_USERS - 1)},
    "b of one": {"b": jnp.ones(1)},
    "x": {"x": jnp.ones((N_ITEMS - 1, RANK))},
    "c": {"c": jnp.ones(N_ITEMS + 1)},
    "c of one": {"c": jnp.ones(1)},
    "mu": {"mu": jnp.ones(N_ITEMS + 1)},
    "mu of one": {"mu": jnp.ones(1)},
    "mu per user": {"mu": jnp.ones(N_USERS)},
}
WITH_FACTORS = {
    "als": lambda f: solvers.als(both_sides(), init=f, l2=1.0, **QUIET),
    "sweep": lambda f: solvers.sweep(f, *both_sides(), l2=1.0),
    "dense_sweep": lambda f: solvers.dense_sweep(f, data.dense(random_ratings()), l2=1.0),
    "fold_in users": lambda f: solvers.fold_in(f, both_sides()[0], l2=1.0),
    "fold_in items": lambda f: solvers.fold_in(f, both_sides()[1], l2=1.0),
    "leave_one_out users": lambda f: solvers.leave_one_out(f, both_sides()[0], l2=1.0),
    "leave_one_out items": lambda f: solvers.leave_one_out(f, both_sides()[1], l2=1.0),
    "implicit_als": lambda f: solvers.implicit_als(both_sides(), init=f, l2=1.0, **QUIET),
    "implicit_sweep": lambda f: solvers.implicit_sweep(f, *both_sides(), l2=1.0),
}


@pytest.mark.parametrize("name", WITH_FACTORS)
@pytest.mark.parametrize("part", WRONG_PARTS)
def test_factors_whose_parts_do_not_fit_are_refused_also_under_jit(name, part):
    if name.endswith("users") and part == "w":
        pytest.skip("a solver of users does not read w, so only b would not fit: see the case 'b'")
    wrong = dataclasses.replace(factors(), **WRONG_PARTS[part])
    with pytest.raises(ValueError, match="expected"):
        WITH_FACTORS[name](wrong)
    if "als" not in name:
        with pytest.raises(ValueError, match="expected"):
            jax.jit(WITH_FACTORS[name])(wrong)


@pytest.mark.parametrize("by_item", [True, False])
@pytest.mark.parametrize("field", ["other", "row", "position"])
@pytest.mark.parametrize("wrong", [-1, 100])
def test_rows_with_ids_out_of_range_are_refused(by_item, field, wrong):
    rows = both_sides()[by_item]
    if field == "position":
        bad = dataclasses.replace(rows, position=rows.position.at[0].set(wrong))
    else:
        bucket = rows.buckets[0]
        spoiled = getattr(bucket, field)
        spoiled = spoiled.at[(0,) * spoiled.ndim].set(wrong)
        bad = dataclasses.replace(rows, buckets=(dataclasses.replace(bucket, **{field: spoiled}), *rows.buckets[1:]))
    both = (both_sides()[0], bad) if by_item else (bad, both_sides()[1])
    without_item_bias = factors(**WITHOUT_ITEM_BIAS)
    for call in (
        lambda: solvers.als(both, init=factors(), l2=1.0, **QUIET),
        lambda: solvers.sweep(factors(), *both, l2=1.0),
        lambda: solvers.fold_in(factors(), bad, l2=1.0),
        lambda: solvers.leave_one_out(factors(), bad, l2=1.0),
        lambda: solvers.implicit_als(both, init=without_item_bias, l2=1.0, **QUIET),
        lambda: solvers.implicit_sweep(without_item_bias, *both, l2=1.0),
        lambda: solvers.implicit_fold_in(without_item_bias, bad, l2=1.0),
        lambda: solvers.implicit_cost(without_item_bias, bad, l2=1.0),
        lambda: run_gibbs(both),
        lambda: bayes.gibbs_sweep(chain(), both, key=KEY),
    ):
        with pytest.raises(ValueError, match=r"expected ids in \[0, "):
            call()


# ------------------------------------------------------------------------------------------- the two both_sides


def test_rounding_of_centered_ratings_does_not_make_the_sides_different():
    ratings = random_ratings()
    value = ratings.value - ratings.value.mean(dtype=np.float64)
    centered = Ratings(ratings.user, ratings.item, value, N_USERS, N_ITEMS)
    solvers.als(both_sides(centered), init=factors(mu=0.0), l2=1.0, **QUIET)
    huge = Ratings(ratings.user, ratings.item, value * 1e6, N_USERS, N_ITEMS)
    solvers.als(both_sides(huge), init=factors(mu=0.0), l2=1.0, **QUIET)


def with_first_bucket(rows, **columns):
    """The rows, with columns of the first bucket replaced."""
    bucket = dataclasses.replace(rows.buckets[0], **columns)
    return dataclasses.replace(rows, buckets=(bucket, *rows.buckets[1:]))


def test_sides_with_different_ratings_are_refused():
    ratings = random_ratings()
    by_user, by_item = both_sides()
    first = by_user.buckets[0]
    entry = tuple(np.argwhere(np.asarray(first.where))[0])
    ones = both_sides(random_ratings(weights=lambda n: np.ones(n, np.float32)))
    twos = both_sides(random_ratings(weights=lambda n: np.full(n, 2, np.float32)))
    other_pairs = Ratings(ratings.user, (ratings.item + 1) % N_ITEMS, ratings.value, N_USERS, N_ITEMS)
    for users, items, message in (
        (with_first_bucket(by_user, where=first.where.at[entry].set(False)), by_item, "and .*, or other pairs"),
        (with_first_bucket(by_user, value=first.value.at[entry].add(0.01)), by_item, "values that sum to"),
        (by_user, both_sides(other_pairs)[1], "or other pairs of ids"),
        (by_user, ones[1], "only by_item has weights"),
        (ones[0], by_item, "only by_user has weights"),
        (ones[0], twos[1], "weights that sum to"),
    ):
        with pytest.raises(ValueError, match=f"hold different ratings: .*{message}"):
            solvers.als((users, items), init=factors(), l2=1.0, **QUIET)


# ------------------------------------------------------------------------------------------- types


NARROW = [np.uint8, np.int32, jnp.bfloat16]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW)
def test_values_and_weights_of_narrow_types_give_the_results_of_float32(dtype):
    by_user, by_item = both_sides(random_ratings(weights=lambda n: 1 + np.arange(n, dtype=np.float32) % 3))

    def cast(layout):
        if hasattr(layout, "buckets"):
            return dataclasses.replace(layout, buckets=tuple(cast(bucket) for bucket in layout.buckets))
        convert = lambda array: None if array is None else np.asarray(array).astype(dtype)
        return dataclasses.replace(layout, value=convert(layout.value), weights=convert(layout.weights))

    dense = data.dense(random_ratings())
    narrow_rows, narrow_dense = (cast(by_user), cast(by_item)), cast(dense)
    without_item_bias = factors(**WITHOUT_ITEM_BIAS)
    for call in (
        lambda rows, _: solvers.sweep(factors(), *rows, l2=1.0),
        lambda rows, _: solvers.sweep(factors(), *rows, l2=1.0, cg_steps=2),
        lambda rows, _: solvers.als(rows, init=factors(), l2=1.0, **QUIET)[0],
        lambda rows, _: solvers.fold_in(factors(), rows[1], l2=1.0),
        lambda rows, _: solvers.leave_one_out(factors(), rows[0], l2=1.0),
        lambda rows, _: solvers.implicit_fold_in(without_item_bias, rows[0], l2=1.0),
        lambda rows, _: solvers.implicit_cost(without_item_bias, rows[0], l2=1.0),
        lambda _, dense: solvers.dense_sweep(factors(), dense, l2=1.0),
        lambda _, dense: bayes.gibbs_sweep(chain(), dense, key=KEY, mu=3.0),
    ):
        got, expected = call(narrow_rows, narrow_dense), call((by_user, by_item), dense)
        for leaf, expected_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_factors_of_a_narrow_type_are_solved_in_float32_and_keep_their_type(dtype):
    narrow = jax.tree.map(lambda a: a.astype(dtype), factors())
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
    for call in (
        lambda f: solvers.als(both_sides(), init=f, l2=1.0, progress=False, sweeps=3)[0],
        lambda f: solvers.fold_in(f, both_sides()[0], l2=1.0),
        lambda f: solvers.dense_sweep(f, data.dense(random_ratings()), l2=1.0)[0],
    ):
        got, expected = call(narrow), call(wide)
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
        for leaf, expected_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf.astype(jnp.float32), expected_leaf, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.int64])
def test_ridge_functions_accept_any_numeric_type(dtype):
    rng = np.random.default_rng(0)
    x, y, weights = (rng.integers(0, 200 if dtype == np.uint8 else 100, n) for n in ((9, 2), 9, 9))
    where = rng.random(9) < 0.8
    narrow, wide = ([np.asarray(array).astype(each) for array in (x, y, weights)] for each in (dtype, np.float32))
    for call in (
        lambda x, y, w: ridge.solve_user(x, y, where, l2=0.5, weights=w, offset=3),
        lambda x, y, w: ridge.solve_item(x, y, y, where, l2=0.5, weights=w),
        lambda x, y, w: ridge.normal_equations(x, y, where, w),
        lambda x, y, w: ridge.leave_one_out_predictions(
            ridge.factorize(ridge.normal_equations(x, y, where, w), 0.5), x, y, where, w
        ),
    ):
        got, expected = call(*narrow), call(*wide)
        for leaf, expected_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-5)


def test_ordinal_levels_and_new_users_accept_any_numeric_type():
    scale = ordinal.ordinal_scale(np.array([1, 2, 2, 3], np.uint8))
    for dtype in (np.uint8, np.int32, np.float16, np.float64):
        assert ordinal.level_index(scale, np.array([1, 2, 3, 2]).astype(dtype)).tolist() == [0, 1, 2, 1]
    draws = new_user.draws([chains()], mu=3.0)
    expected = new_user.posterior(draws, np.array([1, 3]), np.array([5.0, 2.0]))
    for dtype in (np.uint8, np.int64, np.float16):
        got = new_user.posterior(draws, np.array([1, 3], np.uint8), np.array([5, 2]).astype(dtype))
        jax.tree.map(np.testing.assert_allclose, got, expected)


# ------------------------------------------------------------------------------------------- other arguments


@functools.cache
def posterior_draws():
    return new_user.draws([chains()], mu=3.0)


@functools.cache
def posterior_mixture():
    return new_user.posterior(posterior_draws(), np.array([1, 3]), np.array([5.0, 2.0]))


@functools.cache
def more_draws():
    return new_user.draws([chains(), chains()], mu=3.0)


WRONG_ARGUMENTS = {
    "x with one axis": lambda: ridge.normal_equations(Y, Y),
    "y too long": lambda: ridge.normal_equations(X, np.arange(5.0)),
    "weights too long": lambda: ridge.solve_user(X, Y, WHERE, l2=1.0, weights=np.ones(5)),
    "where too short": lambda: ridge.solve_user(X, Y, WHERE[:-1], l2=1.0),
    "offset of length 1": lambda: ridge.solve_user(X, Y, WHERE, l2=1.0, offset=np.ones(1)),
    "prior of length 1": lambda: ridge.solve_user(X, Y, WHERE, l2=1.0, prior=np.ones(1)),
    "prior without the bias": lambda: ridge.solve_user(X, Y, WHERE, l2=1.0, prior=np.ones(3)),
    "l2 not a number": lambda: ridge.solve_user(X, Y, WHERE, l2=np.ones(3)),
    "b of another length": lambda: ridge.solve_item(X, np.ones(1), Y, WHERE, l2=1.0),
    "precision of length 1": lambda: ridge.factorize(ridge.normal_equations(X, Y), np.ones(1)),
    "precision of another size": lambda: ridge.factorize_matrix(ridge.normal_equations(X, Y), np.eye(4)),
    "prior mean of length 1": lambda: ridge.solve(ridge.factorize(ridge.normal_equations(X, Y), 1.0), np.ones(1)),
    "factor for another number of features": lambda: ridge.leave_one_out_predictions(
        ridge.factorize(ridge.normal_equations(X, Y), 1.0), X[:, :2], Y
    ),
    "a dense matrix with users first": lambda: solvers.dense_sweep(factors(), data.dense(random_ratings()).T, l2=1.0),
    "a mask of another shape": lambda: solvers.dense_sweep(
        factors(), dataclasses.replace(data.dense(random_ratings()), where=np.ones((N_ITEMS, 1), bool)), l2=1.0
    ),
    "unobserved_weight not a number": lambda: solvers.implicit_sweep(
        factors(**WITHOUT_ITEM_BIAS), *both_sides(), l2=1.0, unobserved_weight=np.ones(2)
    ),
    "an item that the draws do not have": lambda: new_user.posterior(
        posterior_draws(), np.array([1, N_ITEMS]), np.ones(2)
    ),
    "an item beyond int32": lambda: new_user.posterior(posterior_draws(), np.array([1, 2**32 + 1]), np.ones(2)),
    "a prediction for a negative item": lambda: new_user.posterior_predictive(
        posterior_draws(), posterior_mixture(), np.array([-1])
    ),
    "a candidate that is not an item": lambda: new_user.expected_variance_reduction(
        posterior_draws(), posterior_mixture(), np.array([N_ITEMS])
    ),
    "a target that is not an item": lambda: new_user.expected_variance_reduction(
        posterior_draws(), posterior_mixture(), None, np.array([N_ITEMS])
    ),
    "a posterior_mixture of other draws": lambda: new_user.posterior_predictive(more_draws(), posterior_mixture()),
    "a variance reduction for other draws": lambda: new_user.expected_variance_reduction(
        more_draws(), posterior_mixture()
    ),
    "a level without a cut": lambda: ordinal.draw_latents(
        np.float32([0.0]), Y, 1 + Y, np.full(4, 2), np.ones(4, bool), key=KEY
    ),
    "latents of different shapes": lambda: ordinal.draw_latents(
        np.float32([0.0]), Y, np.ones(1, np.float32), np.zeros(4, np.int32), WHERE, key=KEY
    ),
    "precision of another shape": lambda: ordinal.probabilities(np.float32([0.0]), Y, np.ones((4, 1), np.float32)),
    "too few degrees of freedom": lambda: side_information.wishart(1.0, np.eye(3, dtype=np.float32), key=KEY),
    "a scale_matrix that is not square": lambda: side_information.wishart(5.0, np.ones((3, 2), np.float32), key=KEY),
    "counts for another number of rows": lambda: side_information.draw_row_precision(
        chain().users, np.ones(1), np.ones(1), key=KEY
    ),
    "features without a link matrix": lambda: side_information.prior_mean(
        chain().users, (side_information.basis(np.random.default_rng(0).normal(size=(N_USERS, 2))),)
    ),
    "several chains in one sweep": lambda: bayes.gibbs_sweep(chains(), data.dense(random_ratings()), key=KEY),
    "a sweep of a transposed matrix": lambda: bayes.gibbs_sweep(chain(), data.dense(random_ratings()).T, key=KEY),
    "mu of length 2": lambda: bayes.gibbs_sweep(chain(), data.dense(random_ratings()), key=KEY, mu=np.ones(2)),
    "mu is NaN": lambda: run_gibbs(mu=np.nan),
    "mu of length 2 in as_factors": lambda: bayes.as_factors(chain(), np.ones(2)),
    "a rating scale with its ends exchanged": lambda: run_gibbs(scale=(5.0, 1.0)),
    "test ratings of another size": lambda: run_gibbs(test=Ratings([0], [0], [1.0], N_USERS + 1, N_ITEMS)),
    "a state with items of another rank": lambda: run_gibbs(
        state=dataclasses.replace(chains(), items=bayes.init_chains(N_USERS, N_ITEMS, 3, key=KEY, chains=2).items)
    ),
    "a state with items of another number of chains": lambda: run_gibbs(
        state=dataclasses.replace(chains(), items=bayes.init_chains(N_USERS, N_ITEMS, RANK, key=KEY, chains=3).items)
    ),
    "row_precision of another length": lambda: run_gibbs(
        state=dataclasses.replace(chains(), users=dataclasses.replace(chains().users, row_precision=jnp.ones((2, 1))))
    ),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match="expected"):
        WRONG_ARGUMENTS[name]()


def test_masked_items_of_a_new_user_change_nothing():
    where = np.array([True, False, True])
    got = new_user.posterior(posterior_draws(), np.array([1, 2**40, 3]), np.array([5.0, np.nan, 2.0]), where)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, posterior_mixture())


def test_traced_values_are_not_checked():
    run = jax.jit(lambda l2: solvers.fold_in(factors(), both_sides()[0], l2=l2).w)
    assert run(-0.1).shape == (N_USERS, RANK)
    args = posterior_draws(), posterior_mixture()
    assert jax.jit(lambda item: new_user.posterior_predictive(*args, item).mean)(np.array([3])).shape == (1,)


# ------------------------------------------------------------------------------------------- extreme numbers

FINITE = st.floats(-(2.0**127), 2.0**127, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE), min_size=16, max_size=16))
def test_log_probabilities_of_intervals_are_finite_and_at_most_zero(pairs):
    ends = np.sort(np.float32(pairs), axis=1)
    found = np.asarray(ordinal.log_interval(*ends.T))
    assert np.isfinite(found).all()
    assert (found <= 0).all()


def test_log_probabilities_of_intervals_in_the_tails_and_of_infinite_intervals_are_accurate():
    ends = np.float32(
        [[-np.inf, np.inf], [-np.inf, -1e30], [1e30, np.inf], [1e30, 1.1e30], [0, 1e38], [7.9, 8.1], [9, 10]]
    )
    found = np.asarray(ordinal.log_interval(*ends.T), np.float64)
    assert not np.isnan(found).any()
    # log(P(z > low) - P(z > high)) = log P(z > low) + log(1 - P(z > high) / P(z > low))
    above_low, above_high = log_ndtr(-ends[5:].astype(float)).T
    expected = above_low + np.log1p(-np.exp(above_high - above_low))
    np.testing.assert_allclose(found[5:], expected, rtol=1e-5)
    probabilities = ordinal.probabilities(
        np.float32([-1.0, 1.0]), np.float32([1e20, -1e30, 0]), np.float32([1.0, 1e20, 1e-30])
    )
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize("value", [1e6, 1e15, 1e25, 3e38])
def test_the_weights_of_a_new_users_mixture_sum_to_one_for_ratings_of_any_size(value):
    mixture = new_user.posterior(posterior_draws(), np.array([1, 3]), np.float32([value, -value]))
    np.testing.assert_allclose(jnp.sum(jnp.exp(mixture.log_weight)), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e6, 1e15])
@pytest.mark.parametrize("scale_matrix", [1e-6, 1.0])
def test_draws_of_the_priors_parameters_are_finite(size, scale_matrix):
    state = dataclasses.replace(chain().users, rows=size * chain().users.rows)
    run = jax.jit(jax.vmap(lambda key: side_information.draw(state, (), Priors(scale_matrix=scale_matrix), key=key)))
    drawn = run(jax.random.split(KEY, 200))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(drawn))


@pytest.mark.parametrize("error", [0.0, 1e30, 3e38])
def test_draws_of_row_precision_are_positive_and_finite(error):
    n = np.ones(N_USERS, np.float32)
    run = jax.jit(jax.vmap(lambda key: side_information.draw_row_precision(chain().users, 9 * n, error * n, key=key)))
    drawn = run(jax.random.split(KEY, 200))
    assert (np.asarray(drawn.row_precision) > 0).all()
    assert np.isfinite(drawn.row_precision_shape).all()


@pytest.mark.parametrize("solver", [solvers.fold_in, solvers.leave_one_out, solvers.implicit_fold_in])
def test_ratings_in_place_of_rows_are_refused_with_the_call_that_makes_rows(as_users_run, solver):
    with pytest.raises(ValueError, match=r"rows: expected Rows, got Ratings. Call data.rows\(ratings, 'user'\)"):
        solver(factors(**(WITHOUT_ITEM_BIAS if solver is solvers.implicit_fold_in else {})), random_ratings(), l2=1.0)
