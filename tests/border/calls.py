"""One valid eager call of every public function that computes on the device, outside solvers and training.

The tests of this folder use them. `solvers`, `training` and the Flax models have such tables in their own tests.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrec
from jaxrec import Ratings, data, evaluation, losses, metrics, models, retrieval
from jaxrec.losses import closed_form, content, softmax
from jaxrec.models import bag_of_items, baselines, linear, neighbors, recency
from jaxrec.retrieval import candidates, quantized, rerank
from jaxrec.solvers import neighbors as knn
from jaxrec.training import negatives

N_USERS, N_ITEMS, D = 7, 9, 3
rng = np.random.default_rng(0)
RATINGS = Ratings(
    *np.unravel_index(rng.permutation(N_USERS * N_ITEMS)[:30], (N_USERS, N_ITEMS)),
    rng.integers(1, 6, 30),
    N_USERS,
    N_ITEMS,
    weights=rng.integers(1, 4, 30),
)
TRAIN, TEST = RATINGS.take(slice(20)), RATINGS.take(slice(20, None))
FACTORS = models.init(N_USERS, N_ITEMS, D, key=jax.random.key(0), mu=3.5)
LAYOUTS = {
    "dense": data.dense(RATINGS),
    "observed": data.observed(RATINGS, pad_to_multiple=32, counts=True),
    "linked": data.linked(RATINGS, pad_to_multiple=32),
    "rows": data.rows(RATINGS, "user"),
}
W, X = FACTORS.w, FACTORS.x
Y, WHERE = jnp.arange(9.0), jnp.arange(9) % 3 > 0
B = jnp.zeros(N_USERS)
LABELS = (Y > 4).astype(jnp.float32)
CO_COUNTS = jnp.ones((N_ITEMS, N_ITEMS))
IDS, RELEVANT = jnp.array([[0, 4, 2], [5, 8, 1]]), jnp.array([[4, 2], [3, 3]])
LARGE_CATALOGUE = jax.random.normal(jax.random.key(1), (6000, 4))
INDEX = quantized.quantize(LARGE_CATALOGUE)
TABLE = candidates.Table(jnp.zeros((4, 2), jnp.int32), jnp.ones((4, 2), bool))
LAST_ITEMS = recency.recency_scorer(RATINGS, jnp.ones((1, N_ITEMS, N_ITEMS)), jnp.ones((1, 2)), order="position")
EXCLUDE = jnp.array([[1, 2]] * N_USERS), jnp.ones((N_USERS, 2), bool)
ROWS_OF_ITEMS = neighbors.sparse_rows([0, 0, 4], [1, 2, 3], [1.0, 2.0, 3.0], n_rows=N_ITEMS, n_items=N_ITEMS)
L2 = {"l2": 0.1}
MATRIX_AND_MASK = jnp.ones((N_ITEMS, N_USERS)), jnp.ones((N_ITEMS, N_USERS), bool)
IMPLICIT = {  # losses of scores, with their options
    "bce": {},
    "bpr": {},
    "gbce": {"n_items": N_ITEMS},
    "hinge": {"margin": 0.5},
    "warp": {"n_items": N_ITEMS},
}
IMPLICIT_COSTS = {
    "bpr_cost": lambda factors, layout: losses.bpr_cost(factors, layout, jnp.arange(3), **L2),
    "catalogue_cost": lambda factors, layout: losses.catalogue_cost(factors, layout, cosine=True, **L2),
    "sampled_cost": lambda factors, layout: losses.sampled_cost(factors, layout, jnp.arange(3), log_q=B[:3], **L2),
}
SAMPLES = jnp.array([[0, 4, 2]] * N_USERS), jnp.ones((N_USERS, 3), bool)
BAG = bag_of_items.init_params(N_ITEMS, D, key=jax.random.key(0))
NETWORK_PARAMS = {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}


def on_layouts(function, *names):
    """A call of the function on each of the layouts."""
    return lambda: [function(FACTORS, LAYOUTS[name], **L2) for name in names]


LOG = np.float32([1, 0, 1]), np.float32([0.5, 0.25, 0.5]), np.float32([0.25, 0.5, 0.75])
EVALUATIONS = [
    evaluation.Evaluation({"ndcg@2": np.float32(values)}, 3, {}, {}) for values in ([0.1, 0.5, 0.2], [0.0, 0.5, 0.1])
]

CALLS = {
    "losses.squared_error": lambda: losses.squared_error(Y, Y, where=WHERE, weights=Y),
    "losses.half_squared_error": lambda: losses.half_squared_error(Y, Y, where=WHERE, weights=Y),
    "losses.absolute_error": lambda: losses.absolute_error(Y, Y, where=WHERE, weights=Y),
    "losses.logistic": lambda: losses.logistic(Y, LABELS, where=WHERE, weights=Y),
    "losses.from_elementwise": lambda: losses.from_elementwise(optax.huber_loss)(Y, Y),
    "losses.user_cost": lambda: losses.user_cost(W[0], B[0], X, Y, WHERE, **L2),
    "losses.item_cost": lambda: losses.item_cost(X[0], W, B, Y[:7], WHERE[:7], **L2),
    "losses.users_cost": lambda: losses.users_cost(W, B, X, *MATRIX_AND_MASK, **L2),
    "losses.items_cost": lambda: losses.items_cost(X, W, B, *MATRIX_AND_MASK, **L2),
    "losses.cost": on_layouts(losses.cost, *LAYOUTS),
    "losses.data_term": lambda: [losses.data_term(FACTORS, layout) for layout in LAYOUTS.values()],
    "losses.closed_form.cost": on_layouts(closed_form.cost, "dense", "observed", "linked"),
    "losses.closed_form.gradient": on_layouts(closed_form.gradient, "dense", "observed", "linked"),
    "losses.closed_form.value_and_gradient": on_layouts(closed_form.value_and_gradient, "dense", "observed", "linked"),
    "losses.closed_form.user_gradient": lambda: closed_form.user_gradient(W[0], B[0], X, Y, WHERE, **L2),
    "losses.closed_form.item_gradient": lambda: closed_form.item_gradient(X[0], W, B, Y[:7], WHERE[:7], **L2),
    "losses.content.two_tower": lambda: content.two_tower(W, W, B),
    "losses.softmax.in_batch": lambda: softmax.in_batch(W, W, jnp.arange(7), log_q=B - 2),
    "losses.softmax.log_popularity": lambda: softmax.log_popularity(Y),
    **{
        f"{module}.{name}": partial(getattr(losses, name), W[:, 0], W, where=WHERE[:N_USERS], weights=B, **options)
        for module in ("losses", "losses.pairwise")
        for name, options in IMPLICIT.items()
    },
    **{
        f"{module}.{name}": partial(cost, FACTORS, LAYOUTS["observed"])
        for module in ("losses", "losses.implicit")
        for name, cost in IMPLICIT_COSTS.items()
    },
    **{
        f"{module}.catalogue_softmax": lambda: [
            losses.catalogue_softmax(W, X, jnp.arange(7), bias=Y, weights=B),
            jax.grad(lambda w: losses.catalogue_softmax(w, X, SAMPLES[0], where=SAMPLES[1]).sum)(W),
        ]
        for module in ("losses", "losses.softmax")
    },
    "losses.softmax.sampled": lambda: [
        softmax.sampled(W, W, X, jnp.arange(7), jnp.arange(9), log_q=Y - 9),
        softmax.sampled(W, W, X[SAMPLES[0]], jnp.arange(7), SAMPLES[0], negative_where=SAMPLES[1]),
    ],
    "losses.content.kernel_l2": lambda: content.kernel_l2(NETWORK_PARAMS, **L2),
    "losses.softmax.listwise": lambda: losses.softmax.listwise(W, jnp.abs(W)),
    "metrics.rmse": lambda: metrics.rmse(Y, Y, where=WHERE, weights=Y),
    "metrics.mae": lambda: metrics.mae(Y, Y, where=WHERE, weights=Y),
    "metrics.auc": lambda: metrics.auc(Y, LABELS, where=WHERE),
    "metrics.log_loss": lambda: metrics.log_loss(Y, LABELS, where=WHERE),
    **{
        f"metrics.{name}": partial(getattr(metrics, name), IDS, RELEVANT)
        for name in ("precision", "recall", "hit_rate", "ndcg", "average_precision", "reciprocal_rank")
    },
    "metrics.ranking.hits": lambda: metrics.ranking.hits(IDS, RELEVANT),
    "metrics.auc_at_k": lambda: metrics.auc_at_k(IDS, RELEVANT, n_candidates=9),
    **{
        f"metrics.{name}": partial(getattr(metrics, name), IDS, n_items=N_ITEMS)
        for name in ("exposure", "catalog_coverage", "exposure_gini", "exposure_entropy")
    },
    "metrics.self_information": lambda: metrics.self_information(IDS, Y, n_users=9),
    "metrics.mean_popularity": lambda: metrics.mean_popularity(IDS, Y),
    "metrics.popularity_lift": lambda: metrics.popularity_lift(IDS, RELEVANT, Y),
    "metrics.unexpectedness": lambda: metrics.unexpectedness(IDS, RELEVANT),
    "metrics.serendipity": lambda: metrics.serendipity(IDS, RELEVANT, IDS[:, :1]),
    "metrics.rank_serendipity": lambda: metrics.rank_serendipity(IDS, RELEVANT, Y),
    "metrics.intra_list_diversity": lambda: metrics.intra_list_diversity(IDS, X),
    "metrics.co_occurrence_diversity": lambda: metrics.co_occurrence_diversity(IDS, CO_COUNTS),
    "metrics.cosine_distance": lambda: metrics.cosine_distance(W, X),
    "metrics.jaccard_distance": lambda: metrics.jaccard_distance(W, X),
    "metrics.hamming_distance": lambda: metrics.hamming_distance(W, X),
    "metrics.category_distribution": lambda: metrics.category_distribution(IDS, jnp.abs(X)),
    "metrics.miscalibration": lambda: metrics.miscalibration(IDS, RELEVANT, jnp.abs(X)),
    "metrics.calibrate": lambda: metrics.calibrate(Y, jnp.abs(X), jnp.full(D, 1 / D), k=2, trade_off=0.5),
    "metrics.calibration_curve": lambda: metrics.calibration_curve(Y, Y, jnp.array([0.0, 3.0, 9.0]), where=WHERE),
    "metrics.calibration_error": lambda: metrics.calibration_error(Y, Y, jnp.array([0.0, 3.0, 9.0]), where=WHERE),
    "metrics.overlap": lambda: metrics.overlap(IDS, RELEVANT),
    "metrics.jaccard": lambda: metrics.jaccard(IDS, RELEVANT),
    "metrics.rank_biased_overlap": lambda: metrics.rank_biased_overlap(IDS, RELEVANT),
    "metrics.group_means": lambda: metrics.group_means(Y, jnp.arange(9) % 2, n_groups=2, where=WHERE),
    "models.init": lambda: models.init(N_USERS, N_ITEMS, D, key=jax.random.key(0), mu=3.5),
    "models.predict": lambda: [models.predict(FACTORS, [0, 1], [2, 8]), models.predict(FACTORS, TEST, train=TRAIN)],
    "models.predict_all": lambda: models.predict_all(FACTORS),
    "models.as_vectors": lambda: models.as_vectors(FACTORS),
    "models.unit_factors": lambda: models.unit_factors(FACTORS),
    "models.bag_of_items.init_params": lambda: bag_of_items.init_params(N_ITEMS, D, key=jax.random.key(0)),
    "models.bag_of_items.drop_items": lambda: bag_of_items.drop_items(SAMPLES[1], fraction=0.5, key=jax.random.key(0)),
    "models.bag_of_items.user_vectors": lambda: bag_of_items.user_vectors(BAG, *SAMPLES),
    "models.bag_of_items.all_vectors": lambda: bag_of_items.all_vectors(BAG, LAYOUTS["linked"]),
    "models.bag_of_items.user_batches": lambda: list(bag_of_items.user_batches(LAYOUTS["rows"], 3, rng=0)(0)),
    "training.negatives.uniform": lambda: negatives.uniform((4, 2), N_ITEMS, key=jax.random.key(0)),
    "training.negatives.alias_table": lambda: negatives.alias_table(Y),
    "training.negatives.by_popularity": lambda: negatives.by_popularity(
        (4, 2), negatives.alias_table(Y), key=jax.random.key(0)
    ),
    "training.negatives.in_batch_mask": lambda: negatives.in_batch_mask(jnp.arange(7), user=jnp.arange(7)),
    "training.negatives.hard": lambda: negatives.hard(W, SAMPLES[0], 2, where=SAMPLES[1]),
    "training.negatives.is_seen": lambda: negatives.is_seen(jnp.arange(4), *SAMPLES),
    "models.trainable_mask": lambda: models.trainable_mask(FACTORS),
    **{
        f"models.baselines.{name}": partial(getattr(baselines, name), RATINGS)
        for name in ("global_mean", "user_mean", "item_mean", "damped_biases", "popularity")
    },
    "models.linear.histories": lambda: linear.histories(RATINGS),
    "models.linear.history_columns": lambda: linear.history_columns(linear.histories(RATINGS), jnp.arange(3)),
    "models.linear.transposed": lambda: linear.transposed(linear.histories(RATINGS)),
    "models.linear.check_linear": lambda: linear.check_linear(linear.linear_scorer(RATINGS, linear.Matrix(CO_COUNTS))),
    "models.linear.checked_lists": lambda: linear.checked_lists(IDS, IDS > 0, IDS, N_ITEMS),
    "models.linear.for_users": lambda: linear.for_users(linear.linear_scorer(RATINGS, linear.Matrix(CO_COUNTS)), TRAIN)(
        jnp.arange(3)
    ),
    "models.linear.linear_scorer": lambda: linear.linear_scorer(RATINGS, linear.Matrix(CO_COUNTS))(jnp.arange(3)),
    "models.neighbors.sparse_rows": lambda: ROWS_OF_ITEMS,
    "models.neighbors.item_scorer": lambda: [
        neighbors.item_scorer(RATINGS, ROWS_OF_ITEMS)(jnp.arange(3)),
        neighbors.item_scorer(RATINGS, ROWS_OF_ITEMS).scores(IDS, weights=IDS),
    ],
    "models.neighbors.nearest_columns": lambda: neighbors.nearest_columns(
        CO_COUNTS, Y + 1, Y + 1, 0.5, similarity=knn.cosine_similarity, k=2
    ),
    "solvers.neighbors.cosine_similarity": lambda: knn.cosine_similarity(CO_COUNTS, Y[:, None], Y[None], 0.5),
    "solvers.neighbors.jaccard_similarity": lambda: knn.jaccard_similarity(CO_COUNTS, Y[:, None], Y[None], 0.5),
    "solvers.neighbors.item_knn": lambda: knn.item_knn(RATINGS, k=2)(jnp.arange(3)),
    "solvers.neighbors.user_knn": lambda: [
        knn.user_knn(RATINGS, k=2)(jnp.arange(3)),
        knn.user_knn(RATINGS, k=2).scores(IDS, weights=IDS),
    ],
    "solvers.neighbors.rp3beta": lambda: knn.rp3beta(RATINGS, k=2)(jnp.arange(3)),
    "solvers.neighbors.similar": lambda: knn.similar(RATINGS, "user", k=2),
    "models.recency.exponential": lambda: recency.exponential([0.0, 0.5], window=2),
    "models.recency.inverse_power": lambda: recency.inverse_power([1.0], window=2),
    "models.recency.as_age_weight": lambda: recency.as_age_weight(np.ones((1, 2))),
    "models.recency.recent_items": lambda: recency.recent_items(np.array([0, 2]), np.array([4, 1]), window=2),
    "models.recency.recency_features": lambda: recency.recency_features(
        jnp.ones((2, 3)), jnp.zeros((1, 3), jnp.int32), jnp.array([2], jnp.int32), N_ITEMS
    ),
    "models.recency.recency_scorer": lambda: one_more_event(
        recency.recency_scorer(RATINGS, CO_COUNTS[None], jnp.ones((1, 2)), order="position")
    ),
    "models.baselines.content_profile": lambda: baselines.content_profile(RATINGS, np.ones((N_ITEMS, 2))),
    "retrieval.top_k": lambda: [
        retrieval.top_k(W, X, 2, exclude=EXCLUDE),
        retrieval.top_k(LARGE_CATALOGUE[:3], LARGE_CATALOGUE, 2, block=1024),
        retrieval.top_k(LARGE_CATALOGUE[:3], INDEX, 2),
    ],
    "retrieval.related_ids": lambda: retrieval.related_ids(X, [0, 3], 2),
    "retrieval.dot": lambda: retrieval.dot(W, X),
    "retrieval.cosine": lambda: retrieval.cosine(W, X),
    "retrieval.negative_squared_distance": lambda: retrieval.negative_squared_distance(W, X),
    "retrieval.quantized.quantize": lambda: quantized.quantize(LARGE_CATALOGUE),
    "retrieval.candidates.nearest": lambda: candidates.nearest(X, 2, batch_size=4, progress=False),
    "retrieval.candidates.top_of_groups": lambda: candidates.top_of_groups(Y, WHERE[None], 2),
    "retrieval.candidates.favorites": lambda: candidates.favorites(Y, 2),
    "retrieval.candidates.look_up": lambda: candidates.look_up(TABLE, [0, 3]),
    "retrieval.candidates.top_of_sequence": lambda: candidates.top_of_sequence(
        LAST_ITEMS.next_scores, jnp.array([1, 2]), 2, 3, n_items=N_ITEMS
    ),
    "retrieval.candidates.merge": lambda: candidates.merge([(IDS[0], WHERE[:3])], size=2, exclude=(IDS[0], WHERE[:3])),
    "retrieval.rerank.rank": lambda: rerank.rank(W[0], X, IDS[0], WHERE[:3], k=2),
    "retrieval.rerank.order": lambda: rerank.order(Y[:3], IDS[0], WHERE[:3], k=2),
    "retrieval.rerank.diversify": lambda: rerank.diversify(Y, X, k=2, trade_off=0.5),
    "evaluation.evaluate": lambda: evaluation.evaluate(
        (W, X), TRAIN, TEST, k=(2, 3), metrics={"ndcg": metrics.ndcg, "own": sum_of_ids, "auc": metrics.auc_at_k}
    ),
    "evaluation.compare": lambda: evaluation.compare(*EVALUATIONS, metric="ndcg@2", resamples=40).low,
    "evaluation.compare_all": lambda: (
        evaluation.compare_all(
            dict(zip("ab", EVALUATIONS, strict=True)), baseline="a", metrics=["ndcg@2"], resamples=40
        ).p_corrected
    ),
    "evaluation.off_policy.ips": lambda: evaluation.off_policy.ips(*LOG, max_weight=3.0),
    "evaluation.off_policy.snips": lambda: evaluation.off_policy.snips(*LOG),
    "evaluation.off_policy.doubly_robust": lambda: evaluation.off_policy.doubly_robust(
        *LOG[:2], np.array([0, 1, 1]), np.full((3, 2), 0.5), np.full((3, 2), 0.3)
    ),
    "evaluation.propensity.naive_bayes": lambda: evaluation.propensity.naive_bayes(TRAIN, TRAIN.value),
    "evaluation.propensity.logistic_regression": lambda: evaluation.propensity.logistic_regression(
        X, np.arange(N_ITEMS) % 2, l2=0.1
    ),
    "evaluation.propensity.logistic_propensities": lambda: evaluation.propensity.logistic_propensities(
        evaluation.propensity.LogisticFit(X[0], X[0, 0], jnp.array(True), jnp.array(3), X[0, 0]), X
    ),
    "evaluation.propensity.inverse_propensity_weights": lambda: evaluation.propensity.inverse_propensity_weights(
        LOG[1]
    ),
    "evaluation.audit": lambda: evaluation.audit(TRAIN, TEST),
    "recommend": lambda: jaxrec.recommend(FACTORS, TRAIN, 0, k=2),
    "related": lambda: jaxrec.related(FACTORS, TRAIN, 0, k=2),
}


def one_more_event(scorer):
    """The scores of users of train, of the same after an event, and of a list."""
    states = scorer.update(scorer.events, np.arange(N_USERS))
    return scorer(jnp.arange(3)), scorer.scores(states), scorer.scores(scorer.state(np.array([[1, 2, 3]])))


def sum_of_ids(ids, relevant, *, where):
    return jnp.sum(ids).astype(jnp.float32)
