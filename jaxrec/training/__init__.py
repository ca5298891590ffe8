"""Gradient-based training of any cost over any pytree of parameters with any Optax optimizer, and grid search."""

from jaxrec.training import lazy, negatives, next_item
from jaxrec.training.loop import FitResult, TrainHistory, fit
from jaxrec.training.on_device import EpochsFit, EpochsHistory, fit_epochs, fit_members
from jaxrec.training.search import grid, grid_points
from jaxrec.training.step import Descent, Epochs, TrainState, descend, epochs, init_state, make_step

__all__ = [
    "Descent",
    "Epochs",
    "EpochsFit",
    "EpochsHistory",
    "FitResult",
    "TrainHistory",
    "TrainState",
    "descend",
    "epochs",
    "fit",
    "fit_epochs",
    "fit_members",
    "grid",
    "grid_points",
    "init_state",
    "lazy",
    "make_step",
    "negatives",
    "next_item",
]
