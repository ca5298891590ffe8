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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from jaxrec import check
from jaxrec.training.resume import Fingerprint, batch_digests, check_same, fingerprint, shapes
from jaxrec.training.step import Cost, TrainState, check_ids, init_state, make_step, whole_number
from jaxrec.types import Total

__all__ = ["FitResult", "TrainHistory", "fit"]

Batches = Iterable[Any] | Callable[[int], Iterable[Any]]


@dataclass(frozen=True)
class TrainHistory:
    """Record of a training run by epoch, and the state to resume from.

    Attributes:
        loss: [epochs], the cost before each step, summed over the epoch's batches; for Totals, their mean.
        validation: [epochs], the value of `validate` after each epoch; empty without it.
        best_epoch: the epoch (from 0) whose parameters were returned.
        stopped: 'epochs' (ran them all), 'converged' (`tol`), 'patience' or 'callback'.
        state: the last state, not the best; `fit(..., resume=history)` continues from it.
        best: the best parameters so far.
        fingerprint: of the key, the optimizer and the first batch, by which `resume` detects that they changed.
    """

    loss: np.ndarray
    validation: np.ndarray
    best_epoch: int
    stopped: str
    state: TrainState
    best: Any
    fingerprint: Fingerprint | None = None


class FitResult(NamedTuple):
    """Result of `fit`.

    Attributes:
        params: the best by `validate`, or the last without it.
        history: the record of the run, and the state to resume from.
    """

    params: Any
    history: TrainHistory


def fit(
    cost: Cost,
    params: Any,
    batches: Batches,
    *,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    epochs: int,
    validate: Callable[[Any], Any] | None = None,
    patience: int | None = None,
    callback: Callable[[int, TrainState, TrainHistory], bool | None] | None = None,
    progress: bool = True,
    tol: float | None = None,
    resume: TrainHistory | None = None,
) -> FitResult:
    """Minimizes a cost over batches, epoch by epoch.

    A loss, parameter or validation that is not finite raises an error and is never returned.

    Args:
        cost: cost(params, batch), a scalar or a Total (its mean is minimized); `cost(params, batch, key=)` if it is
            random. Pass data through the batch: arrays closed over become constants of the compiled program.
        params: a pytree of finite arrays.
        batches: a sequence of batches, [ratings] for full-batch steps; or a function of the epoch that returns them,
            such as `data.minibatches`.
        optimizer: from Optax; optax.sgd(alpha) is the notes' gradient descent.
        key: a random key; each step uses fold_in(key, step).
        epochs: the maximum number of epochs, including those of a resumed history; 0 returns the initial parameters.
        validate: validate(params) -> a finite number, lower is better, called after every epoch; the best parameters
            are returned.
        patience: stop after this many epochs without a better validation, >= 1.
        callback: callback(step, state, history), called after every epoch with steps from 1. Return True to stop.
        progress: show a bar with loss and validation.
        tol: stop when an epoch changes the loss by at most this fraction of it: "until converged".
        resume: the TrainHistory of an earlier call with the same arguments; training continues as if it had not been
            interrupted. Checked are the parameters' structure, shapes and types, the key, the optimizer (its state's
            structure, its updates of fixed gradients), the first batch of epoch 0, and whether there is a validation.
            Not checked are the cost, `validate`, the callback and later batches; of `params` only the shapes are used.

    Returns:
        (params, history): the parameters are the best by `validate`, or the last without it.

    Raises:
        ValueError: an epoch without batches (an exhausted generator), patience without validate, numbers out of range,
            initial parameters that are not finite; a history to resume that was made with other arguments.
        FloatingPointError: the loss, the parameters after an epoch, or a validation is not finite.
    """
    check.random_key(key)
    _check_options(epochs, patience, tol, validate, batches)
    state = init_state(params, optimizer)
    if nonfinite := _nonfinite_names(state.params):
        raise ValueError(f"params: expected finite initial values, got NaN or infinity in {nonfinite}.")
    identity, best, best_epoch, losses, scores = fingerprint(state.params, optimizer, key), state.params, -1, [], []
    if resume is not None:
        identity = _check_resumed(resume, state, identity, batches, validate is not None, epochs)
        state, best, best_epoch = resume.state, resume.best, resume.best_epoch
        losses, scores = list(resume.loss), list(resume.validation)
    stopped = "epochs"

    def history() -> TrainHistory:
        return TrainHistory(np.array(losses), np.array(scores), best_epoch, stopped, state, best, identity)

    with tqdm(total=epochs, initial=len(losses), desc="fit", unit="epoch", disable=not progress) as bar:
        for epoch in range(len(losses), epochs):
            infos = []
            for batch in batches(epoch) if callable(batches) else batches:
                if not identity.batch:
                    identity = identity._replace(batch=batch_digests(batch))
                check_ids(state.params, batch)
                state, info = _step(state, batch, key, cost=cost, optimizer=optimizer)
                infos.append(info)
            losses.append(_epoch_loss(infos, epoch, state, optimizer))
            if nonfinite := _nonfinite_names(state.params):
                step = int(state.step) - 1
                rate, advice = _rate_and_advice(optimizer, state, step)
                raise FloatingPointError(
                    f"step {step} (epoch {epoch}), {rate}: the parameters after it are not finite: {nonfinite}. "
                    f"{advice} If the loss is finite and its gradient is not, look for a square root, a norm or a "
                    "logarithm at 0, or a mean over no entries."
                )
            if validate is not None:
                scores.append(_validation(validate(state.params), epoch))
            if not scores or scores[-1] <= min(scores):
                best, best_epoch = state.params, epoch
            bar.set_postfix(loss=f"{losses[-1]:.5g}", **({"validation": f"{scores[-1]:.4f}"} if scores else {}))
            bar.update()
            if callback is not None and callback(epoch + 1, state, history()):
                stopped = "callback"
            elif patience is not None and epoch - best_epoch >= patience:
                stopped = "patience"
            elif tol is not None and epoch and abs(losses[-2] - losses[-1]) <= tol * abs(losses[-2]):
                stopped = "converged"
            if stopped != "epochs":
                break
    return FitResult(best, history())


@partial(jax.jit, static_argnames=("cost", "optimizer"))
def _step(state: TrainState, batch: Any, key: PRNGKeyArray, *, cost: Cost, optimizer: Any) -> tuple[TrainState, Total]:
    """One compiled step, cached by (cost, optimizer): a second `fit` with the same pair compiles nothing."""
    return make_step(cost, optimizer)(state, batch, key=key)


def _epoch_loss(infos: list[Total], epoch: int, state: TrainState, optimizer: optax.GradientTransformation) -> float:
    if not infos:
        raise ValueError(
            f"batches: expected at least one per epoch, got none in epoch {epoch}. A generator is exhausted after one "
            "epoch: pass a list, or a function of the epoch that returns one."
        )
    sums, counts = np.array([(float(info.sum), float(info.count)) for info in infos]).T
    wrong = ~np.isfinite(sums) | ~np.isfinite(counts)
    if wrong.any():
        first = int(wrong.argmax())
        step = int(state.step) - len(infos) + first
        rate, advice = _rate_and_advice(optimizer, state, step)
        problem = f"'s count is {counts[first]}" if np.isfinite(sums[first]) else f" is {sums[first]}"
        raise FloatingPointError(f"step {step} (epoch {epoch}), {rate}: the loss{problem}. {advice}")
    count = math.fsum(counts)
    return math.fsum(sums) / count if count else math.fsum(sums)


def _validation(value: Any, epoch: int) -> float:
    if np.size(value) != 1 or not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        raise ValueError(f"validate: expected one number, lower is better, got {type(value).__name__} {value!r}.")
    score = float(np.asarray(value).reshape(()))
    if not math.isfinite(score):
        raise FloatingPointError(
            f"epoch {epoch}: validate returned {score}, while the parameters and the loss are finite. Such a value "
            "cannot be compared. Check what it computes: a mean over no entries (a validation set that is empty or "
            "masked), 0 / 0, the logarithm of 0, NaN among its ratings."
        )
    return score


def _check_options(epochs: int, patience: int | None, tol: float | None, validate: Any, batches: Any) -> None:
    whole_number("epochs", epochs, least=0)
    if patience is not None:
        whole_number("patience", patience, least=1)
        if validate is None:
            raise ValueError(
                "patience: expected validate= too, because patience counts epochs without a better validation, got "
                "None. Pass validate=, or use tol=."
            )
    if tol is not None:
        check.positive("tol", tol, zero=True)
    if not callable(batches) and (isinstance(batches, Mapping | str) or not isinstance(batches, Iterable)):
        raise ValueError(
            f"batches: expected a sequence of batches or a function of the epoch, got one {type(batches).__name__}; "
            "for full-batch steps pass a list of it: [ratings]."
        )


def _check_resumed(
    history: TrainHistory, init: TrainState, now: Fingerprint, batches: Batches, validated: bool, epochs: int
) -> Fingerprint:
    """Returns the history's fingerprint, after checking that the history was made with this call's arguments."""
    done = len(history.loss)
    if epochs < done:
        raise ValueError(
            f"epochs: expected at least the {done} that the history has done (they are included), got {epochs}."
        )
    for name, new, old in (
        ("parameters", init.params, history.state.params),
        ("optimizer's state", init.optimizer, history.state.optimizer),
    ):
        structures: tuple[Any, Any] = jax.tree.structure(new), jax.tree.structure(old)
        if structures[0] != structures[1] or shapes(new) != shapes(old):
            is_, was = dict(shapes(new)), dict(shapes(old))
            path = next((path for path in was | is_ if was.get(path) != is_.get(path)), None)
            difference = (
                f"{structures[0]}, was {structures[1]}"
                if path is None
                else f"{path} is {is_.get(path, 'missing')}, was {was.get(path, 'missing')}"
            )
            raise ValueError(
                f"resume: the {name} changed: {difference}. Pass parameters of the same structure, shapes and types "
                "and the same optimizer, or start again from params=history.best."
            )
    if nonfinite := _nonfinite_names((history.state.params, history.best)):
        raise ValueError(f"resume: expected finite parameters in the history, got NaN or infinity in {nonfinite}.")
    if done and validated != bool(len(history.validation)):
        raise ValueError(
            f"resume: the history was made {'without' if validated else 'with'} validate=, and this call has "
            f"{'one' if validated else 'none'}. The best parameters so far are then unknown: pass the same argument, "
            "or start again from params=history.best."
        )
    then = history.fingerprint
    if then is None:  # a history made without a fingerprint: only its state can be checked
        return now
    if then.batch:
        if isinstance(batches, Iterator):
            raise ValueError(
                "batches: expected a list or a function of the epoch to resume with, got a generator. It is exhausted "
                "after one epoch."
            )
        for batch in batches(0) if callable(batches) else batches:
            now = now._replace(batch=batch_digests(batch))
            break
    check_same(then, now)
    return then


def _nonfinite_names(tree: Any) -> str:
    """Paths of the arrays with NaN or infinity, joined by commas; '' if there are none."""
    finite = jax.tree.leaves(_all_finite(tree))
    return ", ".join(path for (path, _), is_finite in zip(shapes(tree), finite, strict=True) if not is_finite)


@jax.jit
def _all_finite(tree: Any) -> Any:
    """Whether each array is finite: one reduction per array, once per epoch."""
    return jax.tree.map(
        lambda leaf: jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.array(True), tree
    )


def _rate_and_advice(optimizer: optax.GradientTransformation, state: TrainState, step: int) -> tuple[str, str]:
    rate = _learning_rate(optimizer, state, step)
    value, smaller = ("unknown", "") if rate is None else (f"{rate:g}", f" ({rate / 10:g})")
    return f"learning rate {value}", (
        f"Try a smaller learning rate{smaller}, a smaller initial scale, or optax.clip_by_global_norm before the "
        "optimizer; then look for inf in the data."
    )


def _learning_rate(optimizer: optax.GradientTransformation, state: TrainState, step: int) -> float | None:
    """The learning rate at a step, for error messages. Optax keeps it in closures, or in the state if injected."""
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
        if "step_size" in names and not isinstance(names["step_size"], int):  # scale(-1) only flips the sign
            return -float(names["step_size"])
        for value in names.values():
            functions += value if isinstance(value, list | tuple) else [value]
    return None
