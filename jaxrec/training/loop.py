"""The training loop: epochs over batches, with validation, early stopping, progress, and resumption.

>>> import jax, jax.numpy as jnp, optax
>>> cost = lambda w, batch: jnp.sum((w * batch - 1.0) ** 2)  # the notes' (w x - 1)^2
>>> w, history = fit(cost, jnp.array(3.0), [jnp.array([1.0])], optimizer=optax.sgd(0.1), key=jax.random.key(0),
...                  epochs=100, tol=1e-6, progress=False)
>>> round(float(w), 3), history.stopped
(1.0, 'converged')
"""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from tqdm import tqdm

from jaxrec.training.step import Cost, State, init, make_step
from jaxrec.types import Total

__all__ = ["History", "fit"]

Batches = Iterable[Any] | Callable[[int], Iterable[Any]]


@dataclass(frozen=True)
class History:
    """What happened, epoch by epoch, and where to go on.

    Attributes:
        loss: [epochs], the cost before each step: summed over the epoch's batches, or for Totals their mean.
        validation: [epochs], what `validate` said after each epoch; empty without it.
        best_epoch: the epoch (from 0) whose parameters were returned.
        stopped: 'epochs' (ran them all), 'converged' (`tol`), 'patience' or 'callback'.
        state: the last state, not the best; `fit(..., resume=history)` goes on from it.
        best: the best parameters so far.
    """

    loss: np.ndarray
    validation: np.ndarray
    best_epoch: int
    stopped: str
    state: State
    best: Any


def fit(
    cost: Cost,
    params: Any,
    batches: Batches,
    *,
    optimizer: optax.GradientTransformation,
    key: Array,
    epochs: int,
    validate: Callable[[Any], Any] | None = None,
    patience: int | None = None,
    callback: Callable[[int, Any], bool | None] | None = None,
    progress: bool = True,
    tol: float | None = None,
    resume: History | None = None,
) -> tuple[Any, History]:
    """Minimizes a cost over batches, epoch by epoch.

    Args:
        cost: cost(params, batch), a scalar or a Total (its mean is minimized); `cost(params, batch, key=)` where it
            is random. Pass data through the batch: arrays closed over become constants of the compiled program.
        params: a pytree of arrays.
        batches: a sequence of batches, [ratings] for full-batch steps; or a function of the epoch that gives them,
            such as `data.minibatches`.
        optimizer: from Optax; optax.sgd(alpha) is the notes' gradient descent.
        key: a random key; each step sees fold_in(key, step).
        epochs: at most, those of a resumed history counted in.
        validate: validate(params) -> a number, lower is better, after every epoch; the best parameters are returned.
        patience: stop after so many epochs without a better validation.
        callback: callback(epoch, params) after every epoch; a true answer stops.
        progress: show a bar with loss and validation.
        tol: stop when an epoch changes the loss by less than this share of it: "until converged".
        resume: the History of an earlier call with the same arguments: goes on as if never interrupted.

    Returns:
        (params, history): the best by `validate`, or the last without it.

    Raises:
        ValueError: an epoch without batches (a spent generator), patience without validate.
        FloatingPointError: the loss is no longer finite.
    """
    if patience is not None and validate is None:
        raise ValueError("patience: counts epochs without a better validation; pass validate=, or use tol=.")
    state, best, best_epoch, losses, scores = init(params, optimizer), params, -1, [], []
    if resume is not None:
        state, best, best_epoch = resume.state, resume.best, resume.best_epoch
        losses, scores = list(resume.loss), list(resume.validation)
    stopped = "epochs"
    with tqdm(total=epochs, initial=len(losses), desc="fit", unit="epoch", disable=not progress) as bar:
        for epoch in range(len(losses), epochs):
            infos = []
            for batch in batches(epoch) if callable(batches) else batches:
                state, info = _step(state, batch, key, cost=cost, optimizer=optimizer)
                infos.append(info)
            losses.append(_epoch_loss(infos, epoch, state, optimizer))
            if validate is not None:
                scores.append(float(validate(state.params)))
            if not scores or scores[-1] <= min(scores):
                best, best_epoch = state.params, epoch
            bar.set_postfix(loss=f"{losses[-1]:.5g}", **({"validation": f"{scores[-1]:.4f}"} if scores else {}))
            bar.update()
            if callback is not None and callback(epoch, state.params):
                stopped = "callback"
            elif patience is not None and epoch - best_epoch >= patience:
                stopped = "patience"
            elif tol is not None and epoch and abs(losses[-2] - losses[-1]) <= tol * abs(losses[-2]):
                stopped = "converged"
            if stopped != "epochs":
                break
    return best, History(np.array(losses), np.array(scores), best_epoch, stopped, state, best)


@partial(jax.jit, static_argnames=("cost", "optimizer"))
def _step(state: State, batch: Any, key: Array, *, cost: Cost, optimizer: Any) -> tuple[State, Total]:
    """One compiled step, cached by (cost, optimizer): a second `fit` of the same pair compiles nothing."""
    return make_step(cost, optimizer)(state, batch, key=key)


def _epoch_loss(infos: list[Total], epoch: int, state: State, optimizer: optax.GradientTransformation) -> float:
    if not infos:
        raise ValueError(
            f"batches: epoch {epoch} had none. A generator is spent after one epoch: pass a list, or a function of "
            "the epoch that makes one."
        )
    losses = np.array([float(info.sum) for info in infos])
    if not np.isfinite(losses).all():
        at = int(state.step) - len(infos) + int((~np.isfinite(losses)).argmax())
        rate = _learning_rate(optimizer, state, at)
        known, smaller = ("unknown", "") if rate is None else (f"{rate:g}", f" ({rate / 10:g})")
        raise FloatingPointError(
            f"step {at} (epoch {epoch}), learning rate {known}: the loss is {losses[~np.isfinite(losses)][0]}. "
            f"Try a smaller learning rate{smaller}, a smaller initial scale, or optax.clip_by_global_norm before the "
            "optimizer; then look for inf in the data."
        )
    count = math.fsum(float(info.count) for info in infos)
    return math.fsum(losses) / count if count else math.fsum(losses)


def _learning_rate(optimizer: optax.GradientTransformation, state: State, step: int) -> float | None:
    """The learning rate at a step, for a message: Optax keeps it in closures (or, injected, in the state)."""
    injected = optax.tree_utils.tree_get(state.optimizer, "learning_rate", None)
    if injected is not None:
        return float(injected)
    functions, seen = [optimizer.update], set()
    while functions:
        function = functions.pop()
        if id(function) in seen or not inspect.isfunction(function):
            continue
        seen.add(id(function))
        names = inspect.getclosurevars(function).nonlocals
        if "step_size_fn" in names:
            return -float(names["step_size_fn"](step))
        if "step_size" in names and not isinstance(names["step_size"], int):  # scale(-1) only turns the sign
            return -float(names["step_size"])
        for value in names.values():
            functions += value if isinstance(value, list | tuple) else [value]
    return None
