"""Narrow types: every function that subtracts, sums or counts does so in float32 at least."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import Factors, data, evaluation, losses, metrics, retrieval
from jaxrec.losses import closed_form, content, layouts, softmax
from jaxrec.models import bag_of_items
from jaxrec.retrieval import candidates, rerank
from tests.border.calls import IMPLICIT, IMPLICIT_COSTS, N_ITEMS, N_USERS, RATINGS, TEST, TRAIN, D

pytestmark = pytest.mark.usefixtures("as_users_run")

NARROW = (
    bool,
    np.int8,
    np.uint8,
    np.int16,
    np.uint16,
    np.int32,
    np.uint32,
    np.int64,
    np.uint64,
    np.float16,
    jnp.bfloat16,
)
OBSERVED = data.observed(RATINGS)
TABLES = {"w": (N_USERS, D), "b": (N_USERS,), "x": (N_ITEMS, D), "c": (N_ITEMS,), "mu": (N_ITEMS,)}


def binary_factors(cast):
    """Factors of zeros and ones, which every type can hold."""
    rng = np.random.default_rng(5)
    return Factors(**{name: jnp.asarray(cast(rng.integers(0, 2, shape))) for name, shape in TABLES.items()})


def as_float32(tree):
    convert = lambda leaf: leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf
    return jax.tree.map(convert, tree)


A, B = np.array([3, 0, 1, 7, 2]), np.array([5, 1, 0, 2, 2])
M, ONES = np.arange(15).reshape(5, 3) % 4, np.array([1, 0, 1, 1, 0])
LISTS = np.array([[0, 4, 2], [3, 1, 0]])
# name -> a function of `cast`, which converts every array of numbers.
COMPUTES = {
    **{
        f"losses.{loss.__name__}": lambda cast, loss=loss: loss(cast(A), cast(B), weights=cast(B))
        for loss in (losses.squared_error, losses.half_squared_error, losses.absolute_error)
    },
    "losses.logistic": lambda cast: losses.logistic(cast(A), cast(ONES), weights=cast(B)),
    "losses.from_elementwise": lambda cast: losses.from_elementwise(optax.huber_loss)(cast(A), cast(B)),
    "metrics.rmse": lambda cast: metrics.rmse(cast(A), cast(B), weights=cast(ONES)),
    "metrics.mae": lambda cast: metrics.mae(cast(A), cast(B), weights=cast(ONES)),
    "metrics.log_loss": lambda cast: metrics.log_loss(cast(A), cast(ONES), weights=cast(A)),
    "metrics.auc": lambda cast: metrics.auc(cast(A), cast(ONES), weights=cast(A)),
    "metrics.self_information": lambda cast: metrics.self_information(LISTS, cast(A), n_users=9),
    "metrics.mean_popularity": lambda cast: metrics.mean_popularity(LISTS, cast(A)),
    "metrics.popularity_lift": lambda cast: metrics.popularity_lift(LISTS, LISTS[::-1], cast(A)),
    "metrics.rank_serendipity": lambda cast: metrics.rank_serendipity(LISTS, LISTS[::-1], cast(A)),
    **{
        f"metrics.intra_list_diversity by {distance.__name__}": (
            lambda cast, distance=distance: metrics.intra_list_diversity(LISTS, cast(M), distance=distance)
        )
        for distance in (metrics.cosine_distance, metrics.jaccard_distance, metrics.hamming_distance)
    },
    "metrics.co_occurrence_diversity": lambda cast: metrics.co_occurrence_diversity(LISTS, cast(M @ M.T)),
    "metrics.category_distribution": lambda cast: metrics.category_distribution(
        np.array([3, 0, 1]), cast(M), weights=cast(B[:3])
    ),
    "metrics.miscalibration": lambda cast: metrics.miscalibration(LISTS, LISTS[::-1], cast(M)),
    "metrics.calibrate": lambda cast: metrics.calibrate(
        cast(A), cast(M), cast(np.array([0, 0, 1])), k=3, trade_off=0.5
    ),
    "metrics.calibration_curve": lambda cast: metrics.calibration_curve(
        cast(A), cast(B), cast(np.array([0, 1])), weights=cast(B)
    ),
    "metrics.group_means": lambda cast: metrics.group_means(cast(A), ONES, n_groups=2),
    "losses.user_cost": lambda cast: losses.user_cost(cast(B[:3]), cast(B[3]), cast(M), cast(A), ONES > 0, l2=0.5),
    "losses.item_cost": lambda cast: losses.item_cost(cast(B[:3]), cast(M), cast(A), cast(B), ONES > 0, l2=0.5),
    "closed_form.user_gradient": lambda cast: closed_form.user_gradient(
        cast(B[:3]), cast(B[3]), cast(M), cast(A), ONES > 0, l2=0.5
    ),
    "closed_form.item_gradient": lambda cast: closed_form.item_gradient(
        cast(B[:3]), cast(M), cast(A), cast(B), ONES > 0, l2=0.5
    ),
    "content.two_tower": lambda cast: content.two_tower(cast(M), cast(M[::-1]), cast(A)),
    "softmax.in_batch": lambda cast: softmax.in_batch(cast(M), cast(M[::-1]), A, weights=cast(B)),
    "softmax.log_popularity": lambda cast: softmax.log_popularity(cast(A)),
    "losses.softmax.listwise": lambda cast: losses.softmax.listwise(cast(M), cast(M[::-1]), weights=cast(B)),
    **{
        f"losses.{name}": lambda cast, name=name, options=options: getattr(losses, name)(
            cast(A), cast(M), weights=cast(B), **options
        )
        for name, options in IMPLICIT.items()
    },
    "losses.catalogue_softmax": lambda cast: losses.catalogue_softmax(
        cast(M), cast(M[::-1]), np.arange(5), bias=cast(A), weights=cast(B)
    ),
    "losses.softmax.sampled": lambda cast: softmax.sampled(
        cast(M), cast(M[::-1]), cast(M[:2]), np.arange(5), np.array([3, 9]), log_q=cast(A[:2]), weights=cast(B)
    ),
    "losses.softmax.sampled, own negatives": lambda cast: softmax.sampled(
        cast(M), cast(M[::-1]), cast(M[:, None]), np.arange(5), np.full((5, 1), 9), log_q=cast(A[:, None])
    ),
    **{
        f"losses.{name}": lambda cast, cost=cost: cost(
            binary_factors(cast), dataclasses.replace(OBSERVED, weights=cast(RATINGS.weights.astype(int)))
        )
        for name, cost in IMPLICIT_COSTS.items()
    },
    "bag_of_items.user_vectors": lambda cast: bag_of_items.user_vectors(
        bag_of_items.BagOfItems(cast(M), None, cast(A)),
        np.array([[1, 4]]),
        np.ones((1, 2), bool),
        weights=cast(B[None, :2]),
    ),
    "losses.cost of values": lambda cast: losses.cost(binary_factors(np.float32), observed_ratings(cast), l2=0.5),
    "closed_form of values": lambda cast: closed_form.value_and_gradient(
        binary_factors(np.float32), observed_ratings(cast), l2=0.5
    ),
    "retrieval.top_k": lambda cast: retrieval.top_k(cast(M[:2]), cast(M), 3),
    "retrieval.related_ids": lambda cast: retrieval.related_ids(cast(M), [0, 2], 2),
    "retrieval.dot": lambda cast: retrieval.dot(cast(M), cast(M)),
    "retrieval.negative_squared_distance": lambda cast: retrieval.negative_squared_distance(cast(M), cast(M)),
    "retrieval.cosine": lambda cast: retrieval.top_k(cast(M[:2]), cast(M), 3, score=retrieval.cosine),
    "candidates.nearest": lambda cast: candidates.nearest(cast(M), 2, progress=False),
    "candidates.top_of_groups": lambda cast: candidates.top_of_groups(cast(A), ONES[None] > 0, 2),
    "candidates.favorites": lambda cast: candidates.favorites(cast(A), 2),
    "rerank.rank": lambda cast: rerank.rank(cast(M[0]), cast(M), np.array([0, 3]), np.ones(2, bool), k=2),
    "rerank.order": lambda cast: rerank.order(cast(A[:2]), np.array([0, 3]), np.ones(2, bool), k=2),
    "rerank.diversify": lambda cast: rerank.diversify(cast(A), cast(M), k=3, trade_off=0.5),
    "evaluation.evaluate": lambda cast: list(
        evaluation.evaluate(
            (cast(np.arange(N_USERS)[:, None] % 3), cast(np.arange(N_ITEMS)[:, None])), TRAIN, TEST, k=2,
            metrics={"ndcg": metrics.ndcg, "auc": metrics.auc_at_k},
        ).values()
    ),
}  # fmt: skip


def observed_ratings(cast):
    """Observed ratings whose values and weights are converted."""
    return dataclasses.replace(
        OBSERVED, value=cast(RATINGS.value.astype(int)), weights=cast(RATINGS.weights.astype(int))
    )


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", COMPUTES)
def test_results_of_narrow_types_equal_those_of_float32(name, dtype):
    cast = lambda array: np.asarray(array).astype(dtype)
    cast_to_float32 = lambda array: cast(array).astype(np.float32)
    got, expected = COMPUTES[name](cast), COMPUTES[name](cast_to_float32)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for leaf, expected_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == expected_leaf.dtype
        np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["cost", "gradient", "data_term", "predict_entries"])
def test_results_of_half_precision_parameters_equal_those_of_float32(name, dtype):
    """Sums are computed in float32; a gradient has the parameters' type."""
    narrow, wide = (binary_factors(lambda a, dtype=dtype: np.asarray(a, dtype)), binary_factors(np.float32))
    for layout in (data.dense(RATINGS), OBSERVED, data.linked(RATINGS)):
        function = {
            "cost": lambda f, layout=layout: losses.cost(f, layout, l2=0.5),
            "gradient": lambda f, layout=layout: as_float32(closed_form.value_and_gradient(f, layout, l2=0.5)),
            "data_term": lambda f, layout=layout: losses.data_term(f, layout),
            "predict_entries": lambda f, layout=layout: layouts.predict_entries(f, layout),
        }[name]
        leaves, expected_leaves = jax.tree.leaves(function(narrow)), jax.tree.leaves(function(wide))
        for leaf, expected in zip(leaves, expected_leaves, strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-2 if name == "gradient" else 1e-6)
            assert leaf.dtype == jnp.float32
    got = jax.grad(closed_form.cost)(narrow, OBSERVED, l2=0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}


N = 70_000  # more than a type of 16 bits can count


@pytest.mark.parametrize("dtype", NARROW)
def test_counts_and_sums_beyond_the_range_of_the_type_are_exact(dtype):
    prediction, target, weights = (np.arange(N) % 2).astype(dtype), np.zeros(N, dtype), np.ones(N, dtype)
    for loss in (losses.squared_error, losses.absolute_error):
        total = loss(prediction, target, weights=weights)
        assert (float(total.sum), float(total.count)) == (N / 2, N)
        assert float(loss(prediction, target).count) == N
    assert float(metrics.rmse(prediction, target, weights=weights)) == pytest.approx(np.sqrt(0.5))
    assert float(metrics.mae(prediction, target)) == pytest.approx(0.5)
    assert float(metrics.log_loss(target, prediction, weights=weights)) == pytest.approx(np.log(2), rel=1e-5)
    assert float(metrics.auc(prediction, prediction.astype(np.float32), weights=weights)) == 1


def test_weights_whose_sum_exceeds_int32_are_summed_exactly():
    weights = np.full(4, 2**30, np.int32)
    total = losses.squared_error(np.ones(4, np.int32), np.zeros(4, np.int32), weights=weights)
    assert (float(total.sum), float(total.count)) == (2.0**32, 2.0**32)
    assert float(softmax.log_popularity(weights)[0]) == pytest.approx(np.log(0.25))


def test_metrics_of_uint8_and_float16_do_not_overflow():
    y, p = np.array([5, 1, 3], np.uint8), np.array([3, 4, 3], np.uint8)
    assert float(metrics.mae(p, y)) == pytest.approx(5 / 3)
    many = np.float16(np.arange(70_000) % 3)
    assert float(metrics.rmse(many, np.zeros(70_000, np.float16))) == pytest.approx(np.sqrt(5 / 3), rel=1e-3)


def test_64_bit_scores_are_ranked_in_64_bits():
    """Such as times in nanoseconds: in float32 they would all be equal."""
    score, target = np.array([2**60 + 1, 2**60, 2**60 + 2, 2**60 - 1]), np.array([1, 0, 1, 0])
    assert float(metrics.auc(score, target)) == 1
    assert float(metrics.auc(1 + 1e-12 * np.arange(4.0), target)) == float(metrics.auc(np.arange(4.0), target))
    where = np.array([True, True, False, True])
    assert float(metrics.auc(np.where(where, score, 2**62), target, where=where)) == 1
