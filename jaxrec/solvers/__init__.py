"""Solvers: closed forms, alternations and a Gibbs sampler for the costs of `jaxrec.losses` and implicit feedback."""

from jaxrec.solvers import gibbs, hierarchy, newcomer, ordinal, ridge
from jaxrec.solvers.als import als, dense_sweep, sweep
from jaxrec.solvers.implicit import frequency_scaled, implicit_als, implicit_cost, implicit_fold_in, implicit_sweep
from jaxrec.solvers.one_side import fold_in, leave_one_out
from jaxrec.solvers.ridge import solve_item, solve_user

__all__ = [
    "als",
    "dense_sweep",
    "fold_in",
    "frequency_scaled",
    "gibbs",
    "hierarchy",
    "implicit_als",
    "implicit_cost",
    "implicit_fold_in",
    "implicit_sweep",
    "leave_one_out",
    "newcomer",
    "ordinal",
    "ridge",
    "solve_item",
    "solve_user",
    "sweep",
]
