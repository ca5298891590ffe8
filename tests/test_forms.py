"""The GPU's form of every operation gives the results of the CPU's form. Both run on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import bayes, catalog, data, evaluation, losses, metrics, models, solvers
from jaxrec.kernels import csr
from jaxrec.retrieval import quantized, related_ids, top_k
from jaxrec.retrieval.rerank import diversify
from jaxrec.solvers import batched_ridge

RATINGS = data.synthetic.low_rank(60, 40, 900, rng=0).ratings
SIDES = tuple(data.rows(RATINGS, side, bucket_growth=1.4) for side in ("user", "item"))
FACTORS = models.init(60, 40, 20, key=jax.random.key(0), mu=3.5)  # rank 20, so that some rows are solved in the dual
TABLES = models.as_vectors(FACTORS)
WITHOUT_ITEM_BIAS = models.init(60, 40, 20, key=jax.random.key(0), item_bias=False)
CHAIN = jax.tree.map(lambda leaf: leaf[0], bayes.init_chains(60, 40, 4, key=jax.random.key(0), chains=1))

VECTORS = jnp.asarray(np.random.default_rng(0).normal(size=(5003, 8)).round(1), jnp.float32)  # with ties
SEEN = jnp.array([[0, 4999], [1, 2], [3, 3]]), jnp.array([[True, True], [True, False], [True, True]])
SUM_OF_IDS = lambda ids, relevant, where, filled: jnp.sum(jnp.where(filled, ids, 0))
METRICS = {"ndcg": metrics.ndcg, "sum of ids": SUM_OF_IDS}

LISTS = jnp.array([[1, 4999, 4999], [7, 0, 0]] * 35), jnp.array([[True] * 3, [True, False, False]] * 35)
CATALOGUE = lambda users: losses.catalogue_softmax(users, VECTORS, LISTS[0], where=LISTS[1], temperature=2.0).sum
SHARED = lambda users: losses.softmax.sampled(users, users, VECTORS[:900], jnp.arange(70), jnp.arange(900)).sum

CALLS = {
    "catalogue_softmax": lambda: jax.value_and_grad(CATALOGUE)(VECTORS[:70]),
    "sampled_softmax": lambda: jax.value_and_grad(SHARED)(VECTORS[:70]),
    "sweep": lambda: solvers.sweep(FACTORS, *SIDES, l2=0.7, l2_bias=0.3),
    "sweep, 3 steps of conjugate gradients": lambda: solvers.sweep(FACTORS, *SIDES, l2=0.7, l2_bias=0.3, cg_steps=3),
    "implicit_sweep": lambda: solvers.implicit_sweep(WITHOUT_ITEM_BIAS, *SIDES, l2=0.7, unobserved_weight=0.1),
    "implicit_sweep, blocks": lambda: solvers.implicit_sweep(WITHOUT_ITEM_BIAS, *SIDES, l2=0.7, block_size=8),
    "implicit_sweep, 2 steps of conjugate gradients": lambda: solvers.implicit_sweep(
        WITHOUT_ITEM_BIAS, *SIDES, l2=0.7, cg_steps=2
    ),
    "implicit_cost": lambda: solvers.implicit_cost(WITHOUT_ITEM_BIAS, SIDES[0], l2=0.7, unobserved_weight=0.1),
    "fold_in": lambda: solvers.fold_in(FACTORS, SIDES[0], l2=0.7, l2_bias=0.3),
    "leave_one_out": lambda: solvers.leave_one_out(FACTORS, SIDES[0], l2=0.7),
    "derivative of a sweep": lambda: jax.grad(lambda l2: solvers.sweep(FACTORS, *SIDES, l2=l2, l2_bias=0.3)[1])(0.7),
    "dense_sweep": lambda: solvers.dense_sweep(FACTORS, data.dense(RATINGS), l2=0.7, l2_bias=0.3),
    "bayes.gibbs_sweep": lambda: bayes.gibbs_sweep(CHAIN, data.dense(RATINGS), key=jax.random.key(1), mu=3.5),
    "bayes.gibbs_sweep, rows": lambda: bayes.gibbs_sweep(CHAIN, SIDES, key=jax.random.key(1), mu=3.5),
    "top_k": lambda: top_k(VECTORS[:70], VECTORS, 3),
    "top_k, allowed and exclude": lambda: top_k(VECTORS[:3], VECTORS, 3, exclude=SEEN, allowed=VECTORS[:, 0] > 0),
    "top_k, k = 200": lambda: top_k(VECTORS[:3], VECTORS, 200),
    "top_k, quantized": lambda: quantized.quantize(VECTORS).top_k(VECTORS[:3], 3),
    "related": lambda: related_ids(VECTORS, [5, 4], 3),
    "evaluate": lambda: dict(evaluation.evaluate(TABLES, None, RATINGS, k=(2, 30), metrics=METRICS)),
    "item_knn": lambda: solvers.neighbors.item_knn(RATINGS, k=5)(np.arange(60)),
    "rp3beta": lambda: solvers.neighbors.rp3beta(RATINGS, k=39, beta=0.3)(np.arange(60)),
    "user_knn, a new user": lambda: solvers.neighbors.user_knn(RATINGS, k=5).scores(np.array([[1, 7, 30]])),
    "recommend, a function": lambda: (
        catalog.recommend(lambda tables, users: tables[0][users] @ tables[1].T, RATINGS, k=3, state=TABLES).score
    ),
    "gradient": lambda: losses.closed_form.gradient(FACTORS, data.linked(RATINGS), l2=0.7),
    "value_and_gradient": lambda: losses.closed_form.value_and_gradient(FACTORS, data.linked(RATINGS), l2=0.7),
    "value_and_gradient, observed": lambda: losses.closed_form.value_and_gradient(
        FACTORS, data.observed(RATINGS), l2=0.7
    ),
    "value_and_gradient, dense": lambda: losses.closed_form.value_and_gradient(FACTORS, data.dense(RATINGS), l2=0.7),
}


def assert_result_is(name, expected):
    """Checks the result of a call: ids exactly, floats up to a tolerance."""
    got = CALLS[name]()
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for leaf, expected_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(jnp.asarray(expected_leaf).dtype, jnp.integer):
            np.testing.assert_array_equal(leaf, expected_leaf)
        atol = 2e-5 * float(jnp.max(jnp.abs(expected_leaf), initial=1))
        np.testing.assert_allclose(leaf, expected_leaf, rtol=2e-4, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_the_gpus_form_gives_the_result_of_the_cpus(lowered_for, monkeypatch, name):
    expected = CALLS[name]()
    monkeypatch.setattr(csr, "fast_scatters", lambda on: on == "gpu")
    lowered_for("cuda")
    assert_result_is(name, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sweep", "sweep, 3 steps of conjugate gradients", "implicit_cost", "derivative of a sweep"]
)
def test_merged_buckets_give_the_result_of_separate_buckets(lowered_for, monkeypatch, name):
    expected = CALLS[name]()
    monkeypatch.setattr(batched_ridge, "MERGE", 300)
    lowered_for("cuda")
    assert 1 < len(batched_ridge._merged_buckets(SIDES[0].buckets, "gpu")) < len(SIDES[0].buckets)
    assert_result_is(name, expected)


@pytest.mark.parametrize("name", ["gradient", "value_and_gradient"])
def test_a_gpu_with_slow_scatters_gives_the_result_of_a_cpu(lowered_for, monkeypatch, name):
    expected = CALLS[name]()
    monkeypatch.setattr(csr, "fast_scatters", lambda on: False)
    lowered_for("cuda")
    assert_result_is(name, expected)


def matrix_products(jaxpr):
    """Every matrix product of a program, also those in its loops and branches."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from matrix_products(inner)


# Further calls that must multiply in full precision.
MORE_CALLS = {
    "predict_all": lambda: models.predict_all(FACTORS),
    "losses.cost, dense": lambda: losses.cost(FACTORS, data.dense(RATINGS), l2=0.7),
    "derivative of user_cost": lambda: jax.grad(losses.user_cost)(
        FACTORS.w[0], FACTORS.b[0], FACTORS.x, jnp.ones(40), jnp.ones(40, bool), l2=0.7
    ),
    "in_batch_softmax": lambda: losses.softmax.in_batch(VECTORS[:9], VECTORS[:9], jnp.arange(9)),
    "sampled_softmax, own negatives": lambda: losses.softmax.sampled(
        VECTORS[:2], VECTORS[:2], VECTORS[:6].reshape(2, 3, 8), jnp.arange(2), jnp.arange(6).reshape(2, 3)
    ),
    "bpr_cost": lambda: jax.grad(lambda f: losses.bpr_cost(f, data.observed(RATINGS), jnp.arange(3)).sum)(FACTORS),
    "diversify": lambda: diversify(jnp.arange(9.0), VECTORS[:9], k=3, trade_off=0.5),
}


NOT_TRACED = {"top_k, quantized", "related", "evaluate", "item_knn", "rp3beta", "recommend, a function"}
NOT_TRACED |= {"user_knn, a new user"}  # they check their arguments on the host


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CALLS | MORE_CALLS if name not in NOT_TRACED])
def test_every_matrix_product_has_the_highest_precision(lowered_for, name):
    """The default on a GPU is TF32, which has three digits."""
    lowered_for("cuda")
    products = list(matrix_products(jax.make_jaxpr((CALLS | MORE_CALLS)[name])().jaxpr))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {equation.params["precision"] for equation in products} <= {highest}


def test_matrix_products_in_loops_and_jitted_functions_are_found():
    program = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jax.jit(jnp.matmul)(x, x), x))(jnp.eye(2))
    assert len(list(matrix_products(program.jaxpr))) == 1


@pytest.mark.parametrize("fast", [True, False])
def test_the_gradient_of_linked_ratings_on_a_gpu_has_no_sort_no_loop_and_no_call_of_cusparse(monkeypatch, fast):
    monkeypatch.setattr(csr, "fast_scatters", lambda on: fast)
    jax.clear_caches()
    run = jax.jit(lambda factors, ratings: losses.closed_form.value_and_gradient(factors, ratings, l2=0.7))
    text = run.trace(FACTORS, data.linked(RATINGS)).lower(lowering_platforms=("cuda",)).as_text()
    assert not [name for name in ("stablehlo.sort", "_csr_to_coo", "cusparse", "bcsr", "while") if name in text]
    assert ("stablehlo.scatter" in text) or not fast
