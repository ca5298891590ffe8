"""Training whose epochs run on the device, with early stopping between them; also of several members at once.

`fit_epochs` is `training.fit` for data that fit on the device: an epoch is one compiled program, a scan of steps over
reshuffled minibatches (`training.epochs`), so that small steps do not wait for the host. `fit_members` trains an
ensemble, members of different random keys and initial parameters, in the same program, mapped over the members.

>>> import jax, jax.numpy as jnp, jaxrec, optax
>>> from jaxrec.data import observed
>>> pairs = observed(jaxrec.Ratings([0, 1, 2, 3], [0] * 4, [1.0, 2.0, 3.0, 6.0], 4, 1))
>>> cost = lambda w, batch: jnp.sum(jnp.where(batch.where, (w - batch.value) ** 2, 0))
>>> options = {"optimizer": optax.sgd(0.05), "batch_size": 2, "progress": False}
>>> fitted = fit_epochs(cost, jnp.array(0.0), pairs, key=jax.random.key(0), epochs=50, **options)
>>> abs(float(fitted.params) - 3.0) < 0.5, fitted.history.loss.shape
(True, (50,))
>>> members = fit_members(cost, jnp.zeros(3), pairs, keys=jax.random.split(jax.random.key(0), 3), epochs=50, **options)
>>> members.params.shape, members.history.loss.shape
((3,), (50, 3))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from jaxrec import check
from jaxrec.training.step import Cost, Epochs, TrainState, epochs, init_state, make_step
from jaxrec.types import Total

__all__ = ["EpochsFit", "EpochsHistory", "fit_epochs", "fit_members"]

Callback = Callable[[int, TrainState, "EpochsHistory"], bool | None]


class EpochsHistory(NamedTuple):
    """The record of a run of E epochs; of S members at once, the arrays are [E, S] and `best_epoch` is [S].

    Attributes:
        loss: [E], the mean cost of each epoch's steps (their sum, if the cost is no Total).
        validation: [E], what `validate` returned; [0] without it.
        best_epoch: the epoch, from 0, of the parameters that are returned.
        stopped: why the run ended: 'epochs', 'patience' or 'callback'.
    """

    loss: np.ndarray
    validation: np.ndarray
    best_epoch: np.ndarray
    stopped: str


class EpochsFit(NamedTuple):
    """Result of `fit_epochs` and `fit_members`.

    Attributes:
        params: the best by `validate`, or the last without it; of members, each one's best, stacked.
        history: the record of the run.
    """

    params: Any
    history: EpochsHistory


def fit_epochs(
    cost: Cost,
    params: Any,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    key: PRNGKeyArray,
    epochs: int,
    validate: Callable[[Any], Any] | None = None,
    patience: int | None = None,
    callback: Callback | None = None,
    progress: bool = True,
) -> EpochsFit:
    """Minimizes a cost over minibatches of data on the device, epoch by epoch.

    Epoch e takes the steps of `training.epochs(step, state, data, key=fold_in(key, e), epochs=1)`. There is no
    checkpoint: `training.fit` has them.

    Args:
        cost: cost(params, batch) or cost(params, batch, key=), a scalar or a Total, as in `training.fit`.
        params: a pytree of arrays.
        data: columns [n, ...] with a mask `where` for the last batch's padding, as for `training.epochs`.
        optimizer: from Optax.
        batch_size: rows per step.
        key: a random key, of the order of the rows and of the steps.
        epochs: the maximum number of epochs.
        validate: validate(params) -> a finite number, lower is better, called after every epoch; the best parameters
            are returned.
        patience: stop after this many epochs without a better validation.
        callback: callback(step, state, history), called after every epoch with steps from 1. Return True to stop.
        progress: show a bar with loss and validation.

    Raises:
        ValueError: data that `training.epochs` refuses; numbers out of range; patience without validate.
        FloatingPointError: an epoch's loss, or a validation, is not finite.
    """
    check.random_key(key)
    options = {"optimizer": optimizer, "batch_size": batch_size, "epochs": epochs, "validate": validate}
    options |= {"patience": patience, "callback": callback, "progress": progress}
    return _fit(cost, init_state(params, optimizer), data, key, _one_epoch, **options)


def fit_members(
    cost: Cost,
    params: Any,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    keys: PRNGKeyArray,
    epochs: int,
    validate: Callable[[Any], Any] | None = None,
    patience: int | None = None,
    callback: Callback | None = None,
    progress: bool = True,
) -> EpochsFit:
    """Trains S members at once, an ensemble of seeds in one compiled program; each as `fit_epochs` would train it.

    Args:
        cost: as in `fit_epochs`.
        params: each member's initial parameters, stacked along a leading axis: jax.vmap of an initialization.
        data: as in `fit_epochs`; shared.
        optimizer: as in `fit_epochs`.
        batch_size: as in `fit_epochs`.
        keys: random keys [S], one per member.
        epochs: as in `fit_epochs`.
        validate: of one member's parameters, called for every member. Each member's best parameters are returned.
        patience: stop when no member has had a better validation for this many epochs.
        callback: as in `fit_epochs`; the state has a leading axis of members.
        progress: show a bar with the means over the members.

    Raises:
        ValueError: as `fit_epochs`; parameters without a leading axis of S members.
        FloatingPointError: as `fit_epochs`, of any member.
    """
    n = np.shape(keys)[0] if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) and np.ndim(keys) == 1 else 0
    if n == 0 or {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params)} != {(n,)}:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
        raise ValueError(
            f"params, keys: expected S keys of jax.random.split and parameters [S, ...], got keys {np.shape(keys)} and "
            f"parameters of shapes {shapes}."
        )
    options = {"optimizer": optimizer, "batch_size": batch_size, "epochs": epochs, "validate": validate}
    options |= {"patience": patience, "callback": callback, "progress": progress}
    state = jax.vmap(partial(init_state, optimizer=optimizer))(params)
    return _fit(cost, state, data, keys, _epoch_of_members, members=n, **options)


@lru_cache(maxsize=64)
def _step(cost: Cost, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """One step function per (cost, optimizer), so that a second run with the same pair compiles nothing."""
    return make_step(cost, optimizer)


def _one_epoch(state: TrainState, data: Any, key: PRNGKeyArray, *, step: Any, batch_size: int) -> Epochs:
    return epochs(step, state, data, batch_size=batch_size, key=key, epochs=1)


@partial(jax.jit, static_argnames=("step", "batch_size"))
def _epoch_of_members(state: TrainState, data: Any, keys: PRNGKeyArray, *, step: Any, batch_size: int) -> Epochs:
    run = partial(_one_epoch, step=step, batch_size=batch_size)
    return jax.vmap(lambda state, key: run(state, data, key))(state, keys)


def _fit(
    cost: Cost,
    state: TrainState,
    data: Any,
    key: PRNGKeyArray,
    run_epoch: Callable[..., Epochs],
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    epochs: int,
    validate: Callable[[Any], Any] | None,
    patience: int | None,
    callback: Callback | None,
    progress: bool,
    members: int | None = None,
) -> EpochsFit:
    check.whole_number("epochs", epochs, least=1)
    if patience is not None:
        check.whole_number("patience", patience, least=1)
        if validate is None:
            raise ValueError("patience: expected validate= too, whose values it waits for, got None.")
    step, each = _step(cost, optimizer), () if members is None else (members,)
    best, best_epoch, stopped = state.params, np.zeros(each, np.int64), "epochs"
    losses, scores = [], []
    shape = lambda values: np.array(values, np.float64).reshape(-1, *each)
    with tqdm(total=epochs, desc="fit", unit="epoch", disable=not progress) as bar:
        for epoch in range(epochs):
            state, total = run_epoch(state, data, _fold(key, epoch), step=step, batch_size=batch_size)
            losses.append(_mean(total, epoch))
            if validate is not None:
                scores.append(_validation(validate, state.params, members, epoch))
            better = scores[-1] <= np.min(scores, axis=0) if scores else np.ones(each, bool)
            best = _replace(best, state.params, better, members)
            best_epoch = np.where(better, epoch, best_epoch)
            shown = {"validation": f"{np.mean(scores[-1]):.4f}"} if scores else {}
            bar.set_postfix(loss=f"{np.mean(losses[-1]):.5g}", **shown)
            bar.update()
            history = EpochsHistory(shape(losses), shape(scores), best_epoch, stopped)
            if callback is not None and callback(epoch + 1, state, history):
                stopped = "callback"
            elif patience is not None and np.all(epoch - best_epoch >= patience):
                stopped = "patience"
            if stopped != "epochs":
                break
    return EpochsFit(best, EpochsHistory(shape(losses), shape(scores), best_epoch, stopped))


def _fold(key: PRNGKeyArray, epoch: int) -> PRNGKeyArray:
    return jax.random.fold_in(key, epoch) if np.ndim(key) == 0 else _fold_each(key, epoch)


@jax.jit
def _fold_each(keys: PRNGKeyArray, epoch: int) -> PRNGKeyArray:
    return jax.vmap(lambda key: jax.random.fold_in(key, epoch))(keys)


def _mean(total: Total, epoch: int) -> np.ndarray:
    """The mean cost of an epoch; a cost without a count, which is no Total, is a sum."""
    sums, counts = (np.asarray(part, np.float64)[..., 0] for part in (total.sum, total.count))
    value = sums / np.where(counts > 0, counts, 1)
    if not np.isfinite(value).all():
        member = f", member {int(np.argmin(np.isfinite(value)))}" if value.ndim else ""
        raise FloatingPointError(
            f"epoch {epoch}{member}: the loss is not finite. Try a smaller learning rate, or "
            "optax.clip_by_global_norm before the optimizer; then look for inf in the data."
        )
    return value


def _validation(validate: Callable[[Any], Any], params: Any, members: int | None, epoch: int) -> np.ndarray:
    each = [params] if members is None else [jax.tree.map(lambda p, s=s: p[s], params) for s in range(members)]
    values = np.array([float(np.asarray(validate(one)).reshape(())) for one in each])
    if not np.isfinite(values).all():
        raise FloatingPointError(f"epoch {epoch}: validate returned {values}, which cannot be compared.")
    return values[0] if members is None else values


def _replace(best: Any, params: Any, better: np.ndarray, members: int | None) -> Any:
    """The parameters, of each member where they are better than its best so far."""
    if better.all():
        return params
    if not better.any():
        return best
    pick = lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return jax.tree.map(pick, params, best)
