"""The notes' algorithm: gradient descent on J(w, b, x), and Adam at their settings (learning rate 0.1, 200 iterations).

The model is the notes': w(j) . x(i) + b(j) + mu(i), with mu(i) the mean of item i in train (mean normalization). The
penalty is chosen for Adam on a validation part of train; gradient descent, which moves all parameters at once,
minimizes the same J until it converges. Both use the closed-form gradient on ratings that are sorted once.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from experiments import harness
from jaxrec import data, losses, models
from jaxrec.training import TrainHistory, fit
from jaxrec.types import Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The notes' settings, and a grid for l2."""

    rank: int = 8
    l2s: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)
    adam_rate: float = 0.1
    adam_iterations: int = 200
    descent_rate: float = 0.002
    descent_iterations: int = 5000
    tol: float = 1e-6


def main(settings: Settings) -> dict[str, Any]:
    """Chooses l2 on validation, trains both ways, reports on test; returns what it wrote to OUT."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    train, test = harness.split(dataset, settings)
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)

    adam = optax.adam(settings.adam_rate)
    validation_rmse = {}
    for l2 in settings.l2s:
        factors, _ = _fit(part, adam, l2, settings.adam_iterations, settings, progress=False)
        validation_rmse[l2] = harness.errors(factors, validation, dataset.scale)["rmse"]
        print(f"l2 {l2:5g}: validation RMSE {validation_rmse[l2]:.4f}")
    l2 = min(validation_rmse, key=validation_rmse.__getitem__)

    runs: dict[str, tuple[Factors, TrainHistory]] = {
        "Adam": _fit(train, adam, l2, settings.adam_iterations, settings),
        "gradient descent": _fit(
            train, optax.sgd(settings.descent_rate), l2, settings.descent_iterations, settings, tol=settings.tol
        ),
    }
    fitted = {name: harness.errors(factors, test, dataset.scale) for name, (factors, _) in runs.items()}
    harness.table(
        [
            {"method": name, "iterations": len(history.loss), "stopped": history.stopped, "J": history.loss[-1]}
            | harness.error_cells(fitted[name])
            for name, (_, history) in runs.items()
        ]
    )
    by_biases = models.baselines.damped_biases(train)
    biases = harness.errors(by_biases, test, dataset.scale)
    print(f"damped biases: test RMSE {harness.with_error(biases['rmse'], biases.get('rmse_se'))}")
    models_ = {"damped biases": by_biases} | {name: factors for name, (factors, _) in runs.items()}
    comparison = harness.compare_errors(models_, ("damped biases",), test, dataset.scale)
    harness.plot("gradient_descent", settings, lambda axes: _draw(axes, {n: h.loss for n, (_, h) in runs.items()}))
    values: dict[str, Any] = {"l2": l2, "validation_rmse": validation_rmse[l2], "test_rmse": fitted["Adam"]["rmse"]}
    for name, (_, history) in runs.items():
        prefix = name.lower().replace(" ", "_")
        values |= {f"{prefix}_test_{k}": v for k, v in fitted[name].items()}
        values |= {f"{prefix}_iterations": len(history.loss), f"{prefix}_cost": history.loss[-1]}
    return harness.report("gradient_descent", settings, values, time.perf_counter() - start, comparison=comparison)


def _fit(
    train: Ratings,
    optimizer: optax.GradientTransformation,
    l2: float,
    iterations: int,
    settings: Settings,
    *,
    tol: float | None = None,
    progress: bool = True,
) -> tuple[Factors, TrainHistory]:
    key = jax.random.key(settings.seed)
    mu = data.normalize.means_by_item(train).item
    init = models.init(train.n_users, train.n_items, settings.rank, key=key, item_bias=False, mu=mu)
    cost = partial(losses.closed_form.cost, l2=l2)
    batches = [data.linked(train)]
    return fit(cost, init, batches, optimizer=optimizer, key=key, epochs=iterations, tol=tol, progress=progress)


def _draw(axes: Any, traces: dict[str, np.ndarray]) -> None:
    for name, trace in traces.items():
        axes.loglog(np.arange(1, len(trace) + 1), trace, label=name)
    axes.set(xlabel="iteration", ylabel="J(w, b, x)", title="The joint cost")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
