"""Training by gradients: any cost, any pytree of parameters, any Optax optimizer; and grids of whole trainings."""

from jaxrec.training.loop import History, fit
from jaxrec.training.search import grid, product
from jaxrec.training.step import State, descend, init, make_step

__all__ = ["History", "State", "descend", "fit", "grid", "init", "make_step", "product"]
