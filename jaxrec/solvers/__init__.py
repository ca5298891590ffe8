"""Solvers: closed forms and alternations that minimize the costs of `jaxrec.losses`."""

from jaxrec.solvers import ridge
from jaxrec.solvers.als import als, sweep
from jaxrec.solvers.one_side import fold_in, leave_one_out
from jaxrec.solvers.ridge import solve_item, solve_user

__all__ = ["als", "fold_in", "leave_one_out", "ridge", "solve_item", "solve_user", "sweep"]
