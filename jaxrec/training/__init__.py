"""Training by gradients: any cost, any pytree of parameters, any Optax optimizer; and grids of whole trainings."""

from jaxrec.training import lazy
from jaxrec.training.loop import History, fit
from jaxrec.training.search import grid, product
from jaxrec.training.step import State, descend, epochs, init, make_step

__all__ = ["History", "State", "descend", "epochs", "fit", "grid", "init", "lazy", "make_step", "product"]
