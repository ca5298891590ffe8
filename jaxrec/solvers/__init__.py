"""Solvers: closed forms and alternations that minimize the costs of `jaxrec.losses`, and that of implicit feedback."""

from jaxrec.solvers import ridge
from jaxrec.solvers.als import als, dense_sweep, sweep
from jaxrec.solvers.implicit import frequency_scaled, implicit_als, implicit_cost, implicit_fold_in, implicit_sweep
from jaxrec.solvers.one_side import fold_in, leave_one_out
from jaxrec.solvers.ridge import solve_item, solve_user

__all__ = [
    "als",
    "dense_sweep",
    "fold_in",
    "frequency_scaled",
    "implicit_als",
    "implicit_cost",
    "implicit_fold_in",
    "implicit_sweep",
    "leave_one_out",
    "ridge",
    "solve_item",
    "solve_user",
    "sweep",
]
