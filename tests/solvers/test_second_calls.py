"""A second identical eager call compiles nothing: every public function of the solvers and of bayes."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import bayes, data, losses, models, solvers
from jaxrec.bayes import new_user, ordinal, side_information
from jaxrec.models.linear import histories
from jaxrec.solvers import linear, ridge

KEY = jax.random.key(0)
QUIET = {"progress": False}
KERNEL = np.float32([[1.0, 0.5]])


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
def user_row():
    """(x, y, where) of one user."""
    return factors().x, jnp.arange(9.0), jnp.arange(9) % 2 == 0


@functools.cache
def normal_equations():
    return ridge.normal_equations(*user_row())


@functools.cache
def ridge_factor():
    return ridge.factorize(normal_equations(), 0.5)


@functools.cache
def gram():
    return linear.gram(histories(ratings()))


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
def ordinal_scale():
    return ordinal.ordinal_scale([1.0, 2.0, 2.0, 3.0])


def latents():
    """(cut, η, p, level, where) of four latent variables."""
    return ordinal_scale().cut, jnp.arange(4.0), jnp.ones(4), jnp.array([0, 1, 2, 1]), jnp.ones(4, bool)


@functools.cache
def interval():
    return jnp.arange(4.0), jnp.arange(4.0) + 1


@functools.cache
def posterior():
    return bayes.Posterior(jnp.ones(2), *(jnp.ones((2, 3)) for _ in range(4)))


# One or more calls of every public function. The arguments are cached, so that the second call makes none of them.
CALLS = {
    "als": lambda: solvers.als(sides(), init=factors(), l2=1.0, sweeps=2, **QUIET),
    "sweep": lambda: (
        solvers.sweep(factors(), *sides(), l2=1.0),
        solvers.sweep(factors(), *sides(), l2=(1.0, jnp.ones(9)), cg_steps=2),
    ),
    "dense_sweep": lambda: solvers.dense_sweep(factors(), dense(), l2=1.0),
    "fold_in": lambda: solvers.fold_in(factors(), sides()[0], l2=1.0),
    "leave_one_out": lambda: solvers.leave_one_out(factors(), sides()[0], l2=1.0, loss=losses.absolute_error),
    "implicit_als": lambda: solvers.implicit_als(sides(), init=factors(False), l2=1.0, sweeps=2, **QUIET),
    "implicit_sweep": lambda: (
        solvers.implicit_sweep(factors(False), *sides(), l2=1.0),
        solvers.implicit_sweep(factors(False), *sides(), l2=1.0, cg_steps=1),
        solvers.implicit_sweep(factors(False), *sides(), l2=1.0, block_size=1),
    ),
    "implicit_cost": lambda: solvers.implicit_cost(factors(False), sides()[0], l2=1.0),
    "implicit_fold_in": lambda: solvers.implicit_fold_in(factors(False), sides()[0], l2=1.0),
    "sequence_sums": lambda: solvers.sequence_sums(ratings(), KERNEL, backward_weight=0.5, order="position"),
    "solve_sequence_ridge": lambda: solvers.solve_sequence_ridge(
        solvers.sequence_sums(ratings(), KERNEL, order="position"), l2=1.0, popularity_power=0.1
    ),
    "sequence_ridge": lambda: solvers.sequence_ridge(ratings(), age_weight=KERNEL, l2=1.0, order="position").weight,
    "sequence_ridge_memory": lambda: solvers.sequence_ridge_memory(9, 2),
    "leave_last_position_out": lambda: solvers.leave_last_position_out(
        ratings(), age_weight=KERNEL, l2=1.0, order="position"
    ),
    "frequency_scaled_l2": lambda: solvers.frequency_scaled_l2(ratings(), 1.0),
    "solve_user": lambda: solvers.solve_user(*user_row(), l2=1.0, offset=jnp.ones(9), prior=1.0),
    "solve_item": lambda: solvers.solve_item(user_row()[0], user_row()[1], *user_row()[1:], l2=1.0),
    "ridge.normal_equations": lambda: ridge.normal_equations(*user_row(), weights=user_row()[1]),
    "ridge.factorize": lambda: (
        ridge.factorize(normal_equations(), 0.5),
        ridge.factorize(normal_equations(), jnp.ones(2)),
    ),
    "ridge.factorize_matrix": lambda: ridge.factorize_matrix(normal_equations(), jnp.eye(2)),
    "ridge.solve": lambda: (ridge.solve(ridge_factor()), ridge.solve(ridge_factor(), jnp.ones(2))),
    "ridge.sample": lambda: ridge.sample(ridge_factor(), key=KEY),
    "ridge.leave_one_out_predictions": lambda: ridge.leave_one_out_predictions(ridge_factor(), *user_row()),
    "ridge.with_one": lambda: ridge.with_one(user_row()[0]),
    "linear.ease": lambda: (
        linear.ease(ratings(), l2=1.0, form="primal", item_exponent=-0.5),
        linear.ease(ratings(), l2=1.0, form="dual"),
        linear.ease(ratings(), l2=1.0, rank=3),
    ),
    "linear.ridge": lambda: linear.ridge(ratings(), l2=1.0, user_exponent=-0.5)(jnp.arange(3)),
    "linear.ease_weights": lambda: linear.ease_weights(gram(), l2=1.0),
    "linear.ridge_weights": lambda: linear.ridge_weights(gram(), l2=np.ones(9)),
    "linear.gram": lambda: linear.gram(histories(ratings())),
    "linear.leave_one_user_out": lambda: linear.leave_one_user_out(ratings(), l2=np.array([1.0, 2.0])),
    "linear.sparsify": lambda: linear.sparsify(linear.ease(ratings(), l2=1.0, form="primal"), keep=3),
    "linear.normalized": lambda: linear.normalized(histories(ratings())),
    "linear.spectrum": lambda: linear.spectrum(histories(ratings()), rank=3),
    "linear.low_pass": lambda: linear.low_pass(ratings(), rank=3, hop_weight=2.0)(jnp.arange(3)),
    "linear.turbo_cf": lambda: linear.turbo_cf(ratings())(jnp.arange(3)),
    "linear.cheby_cf": lambda: linear.cheby_cf(ratings(), rank=3, ideal_weight=0.2)(jnp.arange(3)),
    "linear.plateau": lambda: linear.plateau(8, 1.5),
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
        chain().items, user_row()[1], user_row()[1], key=KEY
    ),
    "side_information.gamma": lambda: side_information.gamma(2, 3.0, key=KEY),
    "side_information.prior_mean": lambda: side_information.prior_mean(chain().users, ()),
    "side_information.wishart": lambda: side_information.wishart(5.0, jnp.eye(3), key=KEY),
    "ordinal.ordinal_scale": lambda: ordinal.ordinal_scale([1.0, 2.0, 2.0, 3.0]),
    "ordinal.level_index": lambda: ordinal.level_index(ordinal_scale(), user_row()[1]),
    "ordinal.draw_latents": lambda: ordinal.draw_latents(*latents(), key=KEY),
    "ordinal.draw_cuts": lambda: ordinal.draw_cuts(*latents(), 3.0, key=KEY),
    "ordinal.log_interval": lambda: ordinal.log_interval(*interval()),
    "ordinal.probabilities": lambda: ordinal.probabilities(ordinal_scale().cut, *interval()),
    "ordinal.moments": lambda: ordinal.moments(ordinal_scale(), *interval()),
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


SLOW = {"bayes.gibbs_sweep", "bayes.gibbs", "linear.ease"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CALLS])
def test_a_second_identical_call_compiles_nothing(name, compilations):
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(CALLS[name]()) if isinstance(leaf, jax.Array)])
    before = compilations()
    CALLS[name]()
    assert compilations() == before, f"{name} compiled {compilations() - before} programs again"


def test_every_public_function_is_in_the_table():
    modules = {"": solvers} | {
        f"{module.__name__.split('.')[-1]}.": module for module in (bayes, side_information, new_user)
    }
    modules |= {"ordinal.": ordinal, "ridge.": ridge, "linear.": linear}
    public = {
        prefix + name
        for prefix, module in modules.items()
        for name in module.__all__
        if callable(getattr(module, name)) and not inspect.isclass(getattr(module, name))
    }
    # Functions that are listed under another name, and a type.
    not_listed = {"ridge.solve_user", "ridge.solve_item", "bayes.Features", "bayes.basis"}
    assert public - not_listed == set(CALLS)


def test_a_function_that_compiles_at_every_call_is_counted(compilations):
    compile_anew = lambda: jax.jit(lambda x: x + 1)(jnp.ones(3))
    compile_anew()
    before = compilations()
    compile_anew()
    assert compilations() > before
