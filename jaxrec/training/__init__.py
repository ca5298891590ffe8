"""Gradient-based training of any cost over any pytree of parameters with any Optax optimizer, and grid search."""

from jaxrec.training import lazy, negatives
from jaxrec.training.loop import FitResult, TrainHistory, fit
from jaxrec.training.search import grid, grid_points
from jaxrec.training.step import Descent, Epochs, TrainState, descend, epochs, init_state, make_step

__all__ = [
    "Descent",
    "Epochs",
    "FitResult",
    "TrainHistory",
    "TrainState",
    "descend",
    "epochs",
    "fit",
    "grid",
    "grid_points",
    "init_state",
    "lazy",
    "make_step",
    "negatives",
]
