"""What a GPU's program computes is what a CPU's does: the same calls, in the forms of either, on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import data, losses, models, solvers
from jaxrec.solvers import regressions

RATINGS = data.synthetic.low_rank(60, 40, 900, rng=0).ratings
SIDES = tuple(data.rows(RATINGS, side, bucket_growth=1.4) for side in ("user", "item"))
FACTORS = models.init(60, 40, 20, key=jax.random.key(0), mu=3.5)  # so that some rows are solved in the dual
PRODUCTS = models.init(60, 40, 20, key=jax.random.key(0), item_bias=False)

CALLS = {
    "sweep": lambda: solvers.sweep(FACTORS, *SIDES, l2=0.7, l2_bias=0.3),
    "sweep, 3 steps": lambda: solvers.sweep(FACTORS, *SIDES, l2=0.7, l2_bias=0.3, cg_steps=3),
    "implicit_sweep": lambda: solvers.implicit_sweep(PRODUCTS, *SIDES, l2=0.7, unobserved=0.1),
    "implicit_cost": lambda: solvers.implicit_cost(PRODUCTS, SIDES[0], l2=0.7, unobserved=0.1),
    "fold_in": lambda: solvers.fold_in(SIDES[0], FACTORS, l2=0.7, l2_bias=0.3),
    "leave_one_out": lambda: solvers.leave_one_out(SIDES[0], FACTORS, l2=0.7),
    "a sweep's derivative": lambda: jax.grad(lambda l2: solvers.sweep(FACTORS, *SIDES, l2=l2, l2_bias=0.3)[1])(0.7),
    "cost": lambda: losses.cost(FACTORS, data.linked(RATINGS), l2=0.7),
}


@pytest.mark.parametrize("merge", [0, 500])
@pytest.mark.parametrize("name", CALLS)
def test_a_gpus_form_says_the_same(lowered_for, monkeypatch, name, merge):
    if merge and name == "leave_one_out":
        return
    right = CALLS[name]()
    monkeypatch.setattr(regressions, "MERGE", merge)
    lowered_for("cuda")
    found = CALLS[name]()
    assert jax.tree.structure(found) == jax.tree.structure(right)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5 * float(jnp.max(jnp.abs(theirs), initial=1)))
