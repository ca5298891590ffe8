"""Solvers: closed forms and alternations for the costs of `jaxrec.losses`, explicit and implicit feedback."""

from jaxrec.solvers import linear, neighbors, ridge
from jaxrec.solvers._als import als, dense_sweep, sweep
from jaxrec.solvers._fold_in import fold_in, leave_one_out
from jaxrec.solvers._implicit_als import (
    frequency_scaled_l2,
    implicit_als,
    implicit_cost,
    implicit_fold_in,
    implicit_sweep,
)
from jaxrec.solvers._sequence_ridge import (
    LeftOutPositions,
    leave_last_position_out,
    sequence_ridge,
    solve_sequence_ridge,
)
from jaxrec.solvers._sequence_sums import SequenceSums, sequence_ridge_memory, sequence_sums
from jaxrec.solvers.common import ALSResult, SweepResult
from jaxrec.solvers.ridge import solve_item, solve_user

__all__ = [
    "ALSResult",
    "LeftOutPositions",
    "SequenceSums",
    "SweepResult",
    "als",
    "dense_sweep",
    "fold_in",
    "frequency_scaled_l2",
    "implicit_als",
    "implicit_cost",
    "implicit_fold_in",
    "implicit_sweep",
    "leave_last_position_out",
    "leave_one_out",
    "linear",
    "neighbors",
    "ridge",
    "sequence_ridge",
    "sequence_ridge_memory",
    "sequence_sums",
    "solve_item",
    "solve_sequence_ridge",
    "solve_user",
    "sweep",
]
