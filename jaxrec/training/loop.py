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
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from jaxrec import check
from jaxrec.checkpoints import Checkpoint, Saved, checkpointed
from jaxrec.training.resume import (
    Batches,
    Fingerprint,
    TrainHistory,
    batch_digests,
    check_resumed,
    fingerprint,
    nonfinite_names,
)
from jaxrec.training.step import Cost, TrainState, check_ids, init_state, make_step
from jaxrec.types import Total

__all__ = ["FitResult", "TrainHistory", "fit"]


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
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
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
        checkpoint: a folder, or a `Checkpoint`, where the state is saved, also within epochs. The same call continues
            from there after the process was killed; on a CPU with the same bits as without the interruption. `epochs`
            may grow. Checked is what `resume` checks, and the initial parameters, `tol` and `patience`. `batches` must
            be a list, or a function that returns the same batches at every call.

    Returns:
        (params, history): the parameters are the best by `validate`, or the last without it.

    Raises:
        ValueError: an epoch without batches (an exhausted generator), patience without validate, numbers out of range,
            initial parameters that are not finite; a history to resume, or a checkpoint, that was made with other
            arguments; both `resume` and `checkpoint`.
        FloatingPointError: the loss, the parameters after an epoch, or a validation is not finite.
    """
    check.random_key(key)
    _check_options(epochs, patience, tol, validate, batches)
    state = init_state(params, optimizer)
    if nonfinite := nonfinite_names(state.params):
        raise ValueError(f"params: expected finite initial values, got NaN or infinity in {nonfinite}.")
    if resume is not None and checkpoint is not None:
        raise ValueError("resume, checkpoint: expected one of the two, got both. A checkpoint has its own history.")
    settings = {"run": "fit", "params": state.params, "tol": tol, "patience": patience}
    settings |= {"the presence of validate": validate is not None}
    with checkpointed(checkpoint, settings=settings, like=(state, state.params)) as run:
        identity, best, best_epoch, losses, scores = fingerprint(state.params, optimizer, key), state.params, -1, [], []
        stopped = "epochs"
        infos: list[Total] = []  # the costs of the epoch's steps so far
        if run.saved is not None:
            resume, infos = _history(run.saved)
        if resume is not None:
            try:
                identity = check_resumed(resume, state, identity, batches, validate is not None, epochs)
            except ValueError as error:
                raise ValueError(f"checkpoint: another run's: {error}" if run.saved else str(error)) from error
            state, best, best_epoch = resume.state, resume.best, resume.best_epoch
            losses, scores = list(resume.loss), list(resume.validation)
            stopped = resume.stopped if run.saved is not None else "epochs"
        steps = int(state.step)

        def history() -> TrainHistory:
            return TrainHistory(np.array(losses), np.array(scores), best_epoch, stopped, state, best, identity)

        def save() -> None:
            """Saves the state if it is finite. Its number counts the ends of epochs too, which change the history."""
            if nonfinite_names(state.params):  # the end of the epoch will raise an error
                return
            costs = [(float(info.sum), float(info.count)) for info in infos]
            record = {"losses": losses, "scores": scores, "best_epoch": best_epoch, "stopped": stopped, "costs": costs}
            run.save(steps + len(losses), (state, best), record | {"fingerprint": identity})

        with tqdm(total=epochs, initial=len(losses), desc="fit", unit="epoch", disable=not progress) as bar:
            for epoch in range(len(losses), epochs) if stopped == "epochs" else ():
                for n, batch in enumerate(batches(epoch) if callable(batches) else batches):
                    if n < len(infos):  # this step was made before the checkpoint
                        continue
                    if not identity.batch:
                        identity = identity._replace(batch=batch_digests(batch))
                    check_ids(state.params, batch)
                    state, info = _step(state, batch, key, cost=cost, optimizer=optimizer)
                    infos.append(info)
                    steps += 1
                    if run.due(steps + len(losses)):
                        save()
                losses.append(_epoch_loss(infos, epoch, state, optimizer))
                infos = []
                if nonfinite := nonfinite_names(state.params):
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
                if stopped != "epochs" or epoch == epochs - 1 or run.due(steps + len(losses)):
                    save()
                if stopped != "epochs":
                    break
        return FitResult(best, history())


def _history(saved: Saved) -> tuple[TrainHistory, list[Total]]:
    """Returns the history of a checkpoint, and the costs of the steps of an unfinished epoch."""
    (state, best), meta = saved.state, saved.meta
    key, updates, batch = meta["fingerprint"]
    identity = Fingerprint(key, tuple(updates), tuple(batch))
    losses, scores = np.array(meta["losses"]), np.array(meta["scores"])
    history = TrainHistory(losses, scores, meta["best_epoch"], meta["stopped"], state, best, identity)
    return history, [Total(*costs) for costs in meta["costs"]]


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
    check.whole_number("epochs", epochs, least=0)
    if patience is not None:
        check.whole_number("patience", patience, least=1)
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
