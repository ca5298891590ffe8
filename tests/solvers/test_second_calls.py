"""The law of eager calls: the second identical one compiles nothing, of every public function of the solvers."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import bayes, data, losses, models, solvers
from jaxrec.bayes import new_user, ordinal, side_information
from jaxrec.solvers import ridge

COMPILED = [0]


def _count(event, duration, **_):
    COMPILED[0] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)

KEY = jax.random.key(0)
QUIET = {"progress": False}


@functools.cache
def ratings():
    return data.synthetic.low_rank(12, 9, 50, rng=0).ratings


@functools.cache
def sides():
    return data.rows(ratings(), "user"), data.rows(ratings(), "item")


@functools.cache
def dense():
    return data.dense(ratings())


@functools.cache
def factors(item_bias=True):
    return models.init(12, 9, 2, key=KEY, item_bias=item_bias, mu=3.5 if item_bias else None)


@functools.cache
def row():
    """Of one user: features, ratings and where they are."""
    return factors().x, jnp.arange(9.0), jnp.arange(9) % 2 == 0


@functools.cache
def normal():
    return ridge.normal_equations(*row())


@functools.cache
def factor():
    return ridge.factorize(normal(), 0.5)


@functools.cache
def chains():
    return bayes.init_chains(12, 9, 2, key=KEY, chains=2)


@functools.cache
def chain():
    return jax.tree.map(lambda a: a[0], chains())


@functools.cache
def draws():
    return new_user.draws([chains()], mu=3.5)


@functools.cache
def mixture():
    return new_user.posterior(draws(), jnp.array([3, 7]), jnp.array([5.0, 2.0]))


@functools.cache
def levels():
    return ordinal.ordinal_scale([1.0, 2.0, 2.0, 3.0])


def cells():
    """(cut, η, p, level, where) of four latents."""
    return levels().cut, jnp.arange(4.0), jnp.ones(4), jnp.array([0, 1, 2, 1]), jnp.ones(4, bool)


@functools.cache
def interval():
    return jnp.arange(4.0), jnp.arange(4.0) + 1


@functools.cache
def posterior():
    return bayes.Posterior(jnp.ones(2), *(jnp.ones((2, 3)) for _ in range(4)))


CALLS = {  # one call or several of every public function, each with all that it is given made before
    "als": lambda: solvers.als(sides(), init=factors(), l2=1.0, sweeps=2, **QUIET),
    "sweep": lambda: (
        solvers.sweep(factors(), *sides(), l2=1.0),
        solvers.sweep(factors(), *sides(), l2=(1.0, jnp.ones(9)), cg_steps=2),
    ),
    "dense_sweep": lambda: solvers.dense_sweep(factors(), dense(), l2=1.0),
    "fold_in": lambda: solvers.fold_in(factors(), sides()[0], l2=1.0),
    "leave_one_out": lambda: solvers.leave_one_out(factors(), sides()[0], l2=1.0, loss=losses.absolute_error),
    "implicit_als": lambda: solvers.implicit_als(sides(), init=factors(False), l2=1.0, sweeps=2, **QUIET),
    "implicit_sweep": lambda: solvers.implicit_sweep(factors(False), *sides(), l2=1.0),
    "implicit_cost": lambda: solvers.implicit_cost(factors(False), sides()[0], l2=1.0),
    "implicit_fold_in": lambda: solvers.implicit_fold_in(factors(False), sides()[0], l2=1.0),
    "frequency_scaled_l2": lambda: solvers.frequency_scaled_l2(ratings(), 1.0),
    "solve_user": lambda: solvers.solve_user(*row(), l2=1.0, offset=jnp.ones(9), prior=1.0),
    "solve_item": lambda: solvers.solve_item(row()[0], row()[1], *row()[1:], l2=1.0),
    "ridge.normal_equations": lambda: ridge.normal_equations(*row(), weights=row()[1]),
    "ridge.factorize": lambda: (ridge.factorize(normal(), 0.5), ridge.factorize(normal(), jnp.ones(2))),
    "ridge.factorize_matrix": lambda: ridge.factorize_matrix(normal(), jnp.eye(2)),
    "ridge.solve": lambda: (ridge.solve(factor()), ridge.solve(factor(), jnp.ones(2))),
    "ridge.sample": lambda: ridge.sample(factor(), key=KEY),
    "ridge.leave_one_out_predictions": lambda: ridge.leave_one_out_predictions(factor(), *row()),
    "ridge.with_one": lambda: ridge.with_one(row()[0]),
    "bayes.init_chains": lambda: bayes.init_chains(12, 9, 2, key=KEY, chains=2, levels=(1.0, 2.0)),
    "bayes.gibbs_sweep": lambda: (
        bayes.gibbs_sweep(chain(), dense(), key=KEY, mu=3.5),
        bayes.gibbs_sweep(chain(), sides(), key=KEY, priors=side_information.Priors(heteroscedastic=False)),
    ),
    "bayes.as_factors": lambda: bayes.as_factors(chain(), 3.5),
    "bayes.gibbs": lambda: bayes.gibbs(
        dense(), ratings(), init=chains(), key=KEY, mu=3.5, sweeps=3, burn_in=1, **QUIET
    ),
    "bayes.pool_chains": lambda: bayes.pool_chains(posterior()),
    "side_information.basis": lambda: side_information.basis(np.arange(12.0).reshape(6, 2) ** 2),
    "side_information.check_priors": lambda: side_information.check_priors(side_information.Priors()),
    "side_information.draw": lambda: side_information.draw(chain().users, (), side_information.Priors(), key=KEY),
    "side_information.draw_row_precision": lambda: side_information.draw_row_precision(
        chain().items, row()[1], row()[1], key=KEY
    ),
    "side_information.gamma": lambda: side_information.gamma(2, 3.0, key=KEY),
    "side_information.prior_mean": lambda: side_information.prior_mean(chain().users, ()),
    "side_information.wishart": lambda: side_information.wishart(5.0, jnp.eye(3), key=KEY),
    "ordinal.ordinal_scale": lambda: ordinal.ordinal_scale([1.0, 2.0, 2.0, 3.0]),
    "ordinal.level_index": lambda: ordinal.level_index(levels(), row()[1]),
    "ordinal.draw_latents": lambda: ordinal.draw_latents(*cells(), key=KEY),
    "ordinal.draw_cuts": lambda: ordinal.draw_cuts(*cells(), 3.0, key=KEY),
    "ordinal.log_interval": lambda: ordinal.log_interval(*interval()),
    "ordinal.probabilities": lambda: ordinal.probabilities(levels().cut, *interval()),
    "ordinal.moments": lambda: ordinal.moments(levels(), *interval()),
    "new_user.draws": lambda: new_user.draws([chains()], mu=3.5),
    "new_user.posterior": lambda: new_user.posterior(draws(), np.array([3, 7]), np.array([5, 2], np.uint8)),
    "new_user.posterior_predictive": lambda: (
        new_user.posterior_predictive(draws(), mixture()),
        new_user.posterior_predictive(draws(), mixture(), np.arange(3)),
    ),
    "new_user.expected_variance_reduction": lambda: new_user.expected_variance_reduction(
        draws(), mixture(), np.arange(3)
    ),
    "new_user.lower_confidence_bound": lambda: new_user.lower_confidence_bound(*interval(), 0.9),
}


SLOW = {"bayes.gibbs_sweep", "bayes.gibbs"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CALLS])
def test_the_second_call_compiles_nothing(name):
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(CALLS[name]()) if isinstance(leaf, jax.Array)])
    before = COMPILED[0]
    CALLS[name]()
    assert COMPILED[0] == before, f"{name} compiled {COMPILED[0] - before} programs again"


def test_every_public_function_is_in_the_table():
    modules = {"": solvers} | {
        f"{module.__name__.split('.')[-1]}.": module for module in (bayes, side_information, new_user)
    }
    modules |= {"ordinal.": ordinal, "ridge.": ridge}
    public = {
        prefix + name
        for prefix, module in modules.items()
        for name in module.__all__
        if callable(getattr(module, name)) and not inspect.isclass(getattr(module, name))
    }
    again = {"ridge.solve_user", "ridge.solve_item", "bayes.Features", "bayes.basis"}  # listed elsewhere; a type
    assert public - again == set(CALLS)


def test_a_law_that_is_broken_is_seen():
    anew = lambda: jax.jit(lambda x: x + 1)(jnp.ones(3))
    anew()
    before = COMPILED[0]
    anew()
    assert COMPILED[0] > before
