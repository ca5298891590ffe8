"""Tables that do not fit are refused and never broadcast, also under jit, because shapes are static."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import losses, models, retrieval
from jaxrec.data import normalize
from jaxrec.losses import closed_form, content, penalty, softmax
from jaxrec.retrieval import candidates, quantized
from tests.border.calls import (
    FACTORS,
    IMPLICIT_COSTS,
    LAYOUTS,
    MATRIX_AND_MASK,
    N_ITEMS,
    N_USERS,
    RATINGS,
    TRAIN,
    WHERE,
    B,
    D,
    W,
    X,
    Y,
)

pytestmark = pytest.mark.usefixtures("as_users_run")

TAKES_FACTORS = {
    "predict": lambda f: models.predict(f, jnp.array([0]), jnp.array([1])),
    "predict_all": models.predict_all,
    "as_vectors": models.as_vectors,
    "cost, dense": lambda f: losses.cost(f, LAYOUTS["dense"], l2=0.1),
    "cost, observed": lambda f: losses.cost(f, LAYOUTS["observed"], l2=0.1),
    "cost, linked": lambda f: losses.cost(f, LAYOUTS["linked"], l2=0.1),
    "cost, rows": lambda f: losses.cost(f, LAYOUTS["rows"], l2=0.1),
    "data_term": lambda f: losses.data_term(f, LAYOUTS["linked"]),
    **{
        f"closed_form.{function.__name__}, {layout}": lambda f, function=function, layout=layout: function(
            f, LAYOUTS[layout], l2=0.1
        )
        for function in (closed_form.cost, closed_form.gradient, closed_form.value_and_gradient)
        for layout in ("dense", "observed", "linked")
    },
    **{
        f"{name} of observed": lambda f, cost=cost: cost(f, LAYOUTS["observed"])
        for name, cost in IMPLICIT_COSTS.items()
    },
}
WRONG_PARTS = {
    "short w": {"w": W[:5]},
    "long w": {"w": jnp.concatenate([W, W])},
    "w of one row": {"w": W[:1]},
    "w of another rank": {"w": W[:, :2]},
    "w of rank 1": {"w": W[:, :1]},
    "short b": {"b": B[:5]},
    "b of length 1": {"b": B[:1]},
    "b a number": {"b": jnp.array(0.5)},
    "b a column": {"b": B[:, None]},
    "short x": {"x": X[:8]},
    "short c": {"c": FACTORS.c[:8]},
    "c of length 1": {"c": FACTORS.c[:1]},
    "c a number": {"c": jnp.array(0.5)},
    "mu of length 1": {"mu": jnp.ones(1)},
    "mu per user": {"mu": jnp.ones(N_USERS)},
}


@pytest.mark.parametrize("part", WRONG_PARTS)
@pytest.mark.parametrize("name", TAKES_FACTORS)
def test_factors_whose_parts_do_not_fit_are_refused(name, part):
    wrong = dataclasses.replace(FACTORS, **WRONG_PARTS[part])
    for function in (TAKES_FACTORS[name], jax.jit(TAKES_FACTORS[name])):
        with pytest.raises(ValueError, match=r"factors: expected"):
            function(wrong)


KNOWS_TABLE_SIZES = [name for name in TAKES_FACTORS if name.endswith(("dense", "linked", "rows", "data_term"))]


@pytest.mark.parametrize("name", KNOWS_TABLE_SIZES)
def test_factors_of_another_size_than_the_ratings_are_refused(name):
    for n_users, n_items in ((N_USERS + 1, N_ITEMS), (N_USERS, N_ITEMS + 1), (N_ITEMS, N_USERS)):
        wrong = models.init(n_users, n_items, D, key=jax.random.key(0))
        for function in (TAKES_FACTORS[name], jax.jit(TAKES_FACTORS[name])):
            with pytest.raises(ValueError, match=r"expected tables of \(7, 9\) users and items|\(9, 7\)"):
                function(wrong)


@pytest.mark.parametrize("name", [name for name in TAKES_FACTORS if name.endswith("observed")])
def test_factors_too_short_for_the_ids_of_a_minibatch_are_refused(name):
    """A minibatch does not know the sizes of the tables, so only ids beyond a table are refused."""
    assert (RATINGS.user.max(), RATINGS.item.max()) == (N_USERS - 1, N_ITEMS - 1)
    for n_users, n_items in ((N_USERS - 1, N_ITEMS), (N_USERS, N_ITEMS - 1), (N_ITEMS, N_USERS)):
        short = models.init(n_users, n_items, D, key=jax.random.key(0))
        for function in (TAKES_FACTORS[name], jax.jit(TAKES_FACTORS[name])):
            with pytest.raises(ValueError, match=r"expected ids in \[0, "):
                function(short)


TAKES_STRENGTHS = {
    "cost": lambda l2: losses.cost(FACTORS, LAYOUTS["linked"], l2=l2),
    "cost of a minibatch": lambda l2: losses.cost(FACTORS, LAYOUTS["observed"], l2=l2),
    "closed_form.gradient": lambda l2: closed_form.gradient(FACTORS, LAYOUTS["linked"], l2=l2),
    "l2_bias": lambda l2: losses.cost(FACTORS, LAYOUTS["linked"], l2=0.1, l2_bias=l2),
    "penalty": lambda l2: penalty.l2_penalty(FACTORS, l2=l2),
    **{
        name: lambda l2, cost=cost: cost(FACTORS, LAYOUTS["observed"], l2=l2)
        for name, cost in {
            "bpr_cost": lambda *args, l2: losses.bpr_cost(*args, jnp.arange(3), l2=l2),
            "catalogue_cost": losses.catalogue_cost,
            "sampled_cost": lambda *args, l2: losses.sampled_cost(*args, jnp.arange(3), l2=l2),
        }.items()
    },
    "users_cost": lambda l2: losses.users_cost(W, B, X, *MATRIX_AND_MASK, l2=l2[0]),
    "items_cost": lambda l2: losses.items_cost(X, W, B, *MATRIX_AND_MASK, l2=l2[1]),
}


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("name", TAKES_STRENGTHS)
def test_strengths_of_another_length_than_the_rows_are_refused(name, size):
    with pytest.raises(ValueError, match="l2: expected a number or one per row"):
        TAKES_STRENGTHS[name]((jnp.ones(size), jnp.ones(size)))
    TAKES_STRENGTHS[name]((jnp.ones(N_USERS), jnp.ones(N_ITEMS)))


ONE_ROW = {
    "user_cost": lambda **changes: losses.user_cost(
        **({"w": W[0], "b": B[0], "x": X, "y": Y, "where": WHERE} | changes)
    ),
    "user_gradient": lambda **changes: closed_form.user_gradient(
        **({"w": W[0], "b": B[0], "x": X, "y": Y, "where": WHERE} | changes)
    ),
}


@pytest.mark.parametrize(
    "changes",
    [
        {"x": X[:1]},
        {"x": X[0]},
        {"y": Y[:1]},
        {"where": WHERE[:1]},
        {"b": jnp.zeros(9)},
        {"offset": jnp.zeros(1)},
        {"weights": jnp.ones(1)},
        {"l2": jnp.ones(9)},
        {"l2_bias": jnp.ones(1)},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("name", ONE_ROW)
def test_arrays_of_one_user_that_do_not_fit_are_refused(name, changes):
    with pytest.raises(ValueError, match="expected"):
        ONE_ROW[name](**({"l2": 0.1} | changes))


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf, jnp.float32(-0.5)])
@pytest.mark.parametrize("option", ["l2", "l2_bias"])
@pytest.mark.parametrize("name", [*ONE_ROW, *(name for name in TAKES_FACTORS if "," in name)])
def test_strengths_that_are_negative_or_not_finite_are_refused(name, option, wrong):
    penalties = {"l2": 0.1} | {option: wrong}
    functions = {
        "cost": lambda layout: losses.cost(FACTORS, LAYOUTS[layout], **penalties),
        **{
            f"closed_form.{f.__name__}": lambda layout, f=f: f(FACTORS, LAYOUTS[layout], **penalties)
            for f in (closed_form.cost, closed_form.gradient, closed_form.value_and_gradient)
        },
        **{name: lambda _, name=name: ONE_ROW[name](**penalties) for name in ONE_ROW},
    }
    function_name, _, layout = name.partition(", ")
    with pytest.raises(ValueError, match=f"{option}: expected finite numbers >= 0, got"):
        functions[function_name](layout)


@pytest.mark.parametrize(
    "loss", [content.two_tower, lambda u, v, y, **options: softmax.in_batch(u, v, y.astype(int), **options)]
)
def test_pairs_of_vectors_that_do_not_fit_are_refused(loss):
    u, y = np.ones((4, 3)), np.ones(4)
    for wrong in ((u[:1], u, y), (u, u[:1], y), (u, u, y[:1]), (u[:, :1], u, y), (u, u, y[:, None]), (u[0], u[0], y)):
        with pytest.raises(ValueError, match="expected"):
            loss(*wrong)
    for option in ("where", "weights"):
        with pytest.raises(ValueError, match="expected arrays of one shape"):
            loss(u, u, y, **{option: np.ones(1, bool)})


def test_predict_accepts_ratings_of_the_factors_tables_and_refuses_others():
    np.testing.assert_array_equal(models.predict(FACTORS, RATINGS), models.predict(FACTORS, RATINGS.user, RATINGS.item))
    larger = jaxrec.Ratings([0], [0], [1.0], N_USERS + 1, N_ITEMS)
    with pytest.raises(ValueError, match=r"expected \(7, 9\) users and items, as the factors have, got \(8, 9\)"):
        models.predict(FACTORS, larger)
    with pytest.raises(ValueError, match="train: expected"):
        models.predict(FACTORS, RATINGS, train=larger)
    for wrong in ((RATINGS, [0]), ([0],)):
        with pytest.raises(ValueError, match="item|expected user and item ids"):
            models.predict(FACTORS, *wrong)
    with pytest.raises(ValueError, match="expected user and item ids"):
        models.predict(FACTORS, [0], [0], train=TRAIN)
    with pytest.raises(ValueError, match="one shape"):
        models.predict(FACTORS, [0, 1], [0])


def test_predict_aligns_ratings_to_train_by_raw_ids():
    """The positions in test's tables are other users and items than those in train's."""
    names = {"user_ids": [f"u{j}" for j in range(N_USERS)], "item_ids": np.arange(N_ITEMS) + 100}
    train = dataclasses.replace(TRAIN, **names)
    test = jaxrec.Ratings.from_columns(["u6", "u2", "u6"], [108, 100, 101], [1, 2, 3])
    expected = models.predict(FACTORS, [6, 2, 6], [8, 0, 1])
    np.testing.assert_array_equal(models.predict(FACTORS, test, train=train), expected)
    with pytest.raises(ValueError, match=r"expected \(7, 9\) users and items, as the factors have, got \(2, 3\)"):
        models.predict(FACTORS, test)
    with pytest.raises(ValueError, match="'zoe' is not among the 7 known ids"):
        models.predict(FACTORS, jaxrec.Ratings.from_columns(["zoe"], [108]), train=train)
    same_size = jaxrec.Ratings([1], [0], [1], N_USERS, N_ITEMS, user_ids=[f"v{j}" for j in range(N_USERS)])
    with pytest.raises(ValueError, match="'v1' is not among the 7 known ids"):
        models.predict(FACTORS, same_size, train=train)
    without_raw_ids = jaxrec.Ratings([1], [0], [1], N_USERS, N_ITEMS)
    expected = models.predict(FACTORS, [1], [0])
    np.testing.assert_array_equal(models.predict(FACTORS, without_raw_ids, train=train), expected)


def test_means_of_another_size_are_refused():
    means = normalize.means_by_item_then_user(RATINGS)
    larger = jaxrec.Ratings([0], [0], [1.0], N_USERS + 1, N_ITEMS)
    with pytest.raises(ValueError, match="means.user: expected one per user"):
        normalize.subtract(larger, means)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda items: retrieval.top_k(W, items, 1), "at least one item"),
        (lambda items: jax.jit(lambda items: retrieval.top_k(W, items, 1))(items), "at least one item"),
        (lambda items: retrieval.related_ids(items, [0], 1), "at least two items"),
        (quantized.quantize, "at least one item"),
        (lambda items: candidates.nearest(items, 1, progress=False), "at least one item"),
    ],
    ids=["top_k", "top_k under jit", "related_ids", "quantize", "nearest"],
)
def test_an_empty_catalog_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((0, D)))
