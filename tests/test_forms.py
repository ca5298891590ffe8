"""What a GPU's program computes is what a CPU's does: the same calls, in the forms of either, on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import bayes, data, evaluation, losses, metrics, models, solvers
from jaxrec.kernels import csr
from jaxrec.retrieval import quantized, related_ids, top_k
from jaxrec.retrieval.rerank import diversify
from jaxrec.solvers import batched_ridge

RATINGS = data.synthetic.low_rank(60, 40, 900, rng=0).ratings
SIDES = tuple(data.rows(RATINGS, side, bucket_growth=1.4) for side in ("user", "item"))
FACTORS = models.init(60, 40, 20, key=jax.random.key(0), mu=3.5)  # so that some rows are solved in the dual
TABLES = models.as_vectors(FACTORS)
PRODUCTS = models.init(60, 40, 20, key=jax.random.key(0), item_bias=False)
CHAIN = jax.tree.map(lambda part: part[0], bayes.init_chains(60, 40, 4, key=jax.random.key(0), chains=1))

VECTORS = jnp.asarray(np.random.default_rng(0).normal(size=(5003, 8)).round(1), jnp.float32)  # with ties
SEEN = jnp.array([[0, 4999], [1, 2], [3, 3]]), jnp.array([[True, True], [True, False], [True, True]])
MEASURES = {"ndcg": metrics.ndcg, "mine": lambda ids, relevant, where, filled: jnp.sum(jnp.where(filled, ids, 0))}

CALLS = {
    "sweep": lambda: solvers.sweep(FACTORS, *SIDES, l2=0.7, l2_bias=0.3),
    "sweep, 3 steps": lambda: solvers.sweep(FACTORS, *SIDES, l2=0.7, l2_bias=0.3, cg_steps=3),
    "implicit_sweep": lambda: solvers.implicit_sweep(PRODUCTS, *SIDES, l2=0.7, unobserved_weight=0.1),
    "implicit_cost": lambda: solvers.implicit_cost(PRODUCTS, SIDES[0], l2=0.7, unobserved_weight=0.1),
    "fold_in": lambda: solvers.fold_in(FACTORS, SIDES[0], l2=0.7, l2_bias=0.3),
    "leave_one_out": lambda: solvers.leave_one_out(FACTORS, SIDES[0], l2=0.7),
    "a sweep's derivative": lambda: jax.grad(lambda l2: solvers.sweep(FACTORS, *SIDES, l2=l2, l2_bias=0.3)[1])(0.7),
    "dense_sweep": lambda: solvers.dense_sweep(FACTORS, data.dense(RATINGS), l2=0.7, l2_bias=0.3),
    "bayes.gibbs_sweep": lambda: bayes.gibbs_sweep(CHAIN, data.dense(RATINGS), key=jax.random.key(1), mu=3.5),
    "bayes.gibbs_sweep of Rows": lambda: bayes.gibbs_sweep(CHAIN, SIDES, key=jax.random.key(1), mu=3.5),
    "top_k": lambda: top_k(VECTORS[:70], VECTORS, 3),
    "top_k of allowed, and exclusions": lambda: top_k(VECTORS[:3], VECTORS, 3, exclude=SEEN, allowed=VECTORS[:, 0] > 0),
    "top_k of most": lambda: top_k(VECTORS[:3], VECTORS, 200),
    "top_k by eight bits": lambda: quantized.quantize(VECTORS).top_k(VECTORS[:3], 3),
    "related": lambda: related_ids(VECTORS, [5, 4], 3),
    "evaluate": lambda: evaluation.evaluate(TABLES, None, RATINGS, k=(2, 30), metrics=MEASURES),
    "gradient": lambda: losses.closed_form.gradient(FACTORS, data.linked(RATINGS), l2=0.7),
    "value_and_gradient": lambda: losses.closed_form.value_and_gradient(FACTORS, data.linked(RATINGS), l2=0.7),
    "of a minibatch": lambda: losses.closed_form.value_and_gradient(FACTORS, data.observed(RATINGS), l2=0.7),
    "of Dense": lambda: losses.closed_form.value_and_gradient(FACTORS, data.dense(RATINGS), l2=0.7),
}


def check(name, right):
    found = CALLS[name]()
    assert jax.tree.structure(found) == jax.tree.structure(right)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        if jnp.issubdtype(jnp.asarray(theirs).dtype, jnp.integer):  # ids
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5 * float(jnp.max(jnp.abs(theirs), initial=1)))


# compiled twice, for ten seconds and more
SLOW = {"leave_one_out", "a sweep's derivative", "bayes.gibbs_sweep", "bayes.gibbs_sweep of Rows"}
of_calls = lambda names: [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.mark.parametrize("name", of_calls(CALLS))
def test_a_gpus_form_says_the_same(lowered_for, monkeypatch, name):
    right = CALLS[name]()
    monkeypatch.setattr(csr, "fast_scatters", lambda on: on == "gpu")
    lowered_for("cuda")
    check(name, right)


@pytest.mark.parametrize("name", of_calls(["sweep", "sweep, 3 steps", "implicit_cost", "a sweep's derivative"]))
def test_buckets_that_are_joined_say_the_same(lowered_for, monkeypatch, name):
    right = CALLS[name]()
    monkeypatch.setattr(batched_ridge, "MERGE", 300)
    lowered_for("cuda")
    assert 1 < len(batched_ridge._merged_buckets(SIDES[0].buckets, "gpu")) < len(SIDES[0].buckets)
    check(name, right)


@pytest.mark.parametrize("name", ["gradient", "value_and_gradient"])
def test_a_gpu_with_slow_scatters_says_the_same(lowered_for, monkeypatch, name):
    right = CALLS[name]()
    monkeypatch.setattr(csr, "fast_scatters", lambda on: False)
    lowered_for("cuda")
    check(name, right)


def products(jaxpr):
    """Every product of matrices in a program, those in its loops and branches too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


ALSO = {
    "predict_all": lambda: models.predict_all(FACTORS),
    "losses.cost of Dense": lambda: losses.cost(FACTORS, data.dense(RATINGS), l2=0.7),
    "user_cost's derivative": lambda: jax.grad(losses.user_cost)(
        FACTORS.w[0], FACTORS.b[0], FACTORS.x, jnp.ones(40), jnp.ones(40, bool), l2=0.7
    ),
    "in_batch_softmax": lambda: losses.softmax.in_batch(VECTORS[:9], VECTORS[:9], jnp.arange(9)),
    "diversify": lambda: diversify(jnp.arange(9.0), VECTORS[:9], k=3, trade_off=0.5),
}


NOT_TRACED = {"top_k by eight bits", "related", "evaluate"}  # they look at their arguments on the host


@pytest.mark.parametrize("name", [name for name in CALLS | ALSO if name not in NOT_TRACED])
def test_what_is_solved_ranked_or_compared_is_multiplied_in_every_digit(lowered_for, name):
    """By default it is TF32 on a GPU, of three digits."""
    lowered_for("cuda")
    found = list(products(jax.make_jaxpr((CALLS | ALSO)[name])().jaxpr))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {equation.params["precision"] for equation in found} <= {highest}


def test_products_are_found():
    program = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jax.jit(jnp.matmul)(x, x), x))(jnp.eye(2))
    assert len(list(products(program.jaxpr))) == 1


@pytest.mark.parametrize("fast", [True, False])
def test_a_gpus_gradient_sorts_nothing_and_is_no_sparse_librarys(monkeypatch, fast):
    monkeypatch.setattr(csr, "fast_scatters", lambda on: fast)
    jax.clear_caches()
    run = jax.jit(lambda factors, ratings: losses.closed_form.value_and_gradient(factors, ratings, l2=0.7))
    text = run.trace(FACTORS, data.linked(RATINGS)).lower(lowering_platforms=("cuda",)).as_text()
    assert not [name for name in ("stablehlo.sort", "_csr_to_coo", "cusparse", "bcsr", "while") if name in text]
    assert ("stablehlo.scatter" in text) or not fast
