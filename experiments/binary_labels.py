"""Likes and clicks: collaborative filtering on binary labels, by cross-entropy instead of squared error.

Two readings of MovieLens ratings. Liked: a film rated 4 or 5 is a 1, a film rated lower is a 0, and an unrated film was
not shown. Clicked: every rated film is a 1, and films sampled from those that the user has not rated take the place of
films that were shown and ignored; these zeros are assumed, not observed. The model is
P(y = 1) = g(w . x + b + c + mu), fitted by Adam with the closed-form gradient of the cross-entropy; l2 and the number
of steps are chosen on a validation part of train. It is compared with the base rate and with biases alone.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import harness
from jaxrec import data, losses, metrics, models
from jaxrec.numerics import binary_cross_entropy
from jaxrec.training import fit
from jaxrec.types import Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The labels, and the grid to choose from."""

    liked: float = 4.0
    zeros_per_click: int = 1
    rank: int = 8
    l2s: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    l2_biases: tuple[float, ...] = (0.1, 0.5, 2.0, 4.0)
    rate: float = 0.05
    iterations: int = 400
    patience: int = 10


def main(settings: Settings) -> dict[str, Any]:
    """For both readings chooses on validation and reports on test; returns what it wrote to OUT/binary_labels.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    ratings = harness.split(dataset, settings)
    labels = {
        "liked": tuple(data.labels.binarize(part, positive=settings.liked) for part in ratings),
        "clicked": _clicked(dataset.ratings, *ratings, settings),
    }
    values: dict[str, Any] = {}
    comparison: dict[str, Any] = {}
    for reading, (train, test) in labels.items():
        print(f"\n{reading}: {len(train)} shown in train, {train.value.mean():.1%} of them ones")
        found, comparison[reading] = _report(train, test, settings)
        values |= {f"{reading}_{k}": v for k, v in found.items()}
    harness.plot("binary_labels", settings, lambda axes: _draw(axes, values, settings))
    return harness.report("binary_labels", settings, values, time.perf_counter() - start, comparison=comparison)


def _report(train: Ratings, test: Ratings, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Chooses by the validation log-loss, fits all of train for the chosen number of steps, reads test once.

    Returns:
        (metrics, the comparison of the factors with the stronger baseline).
    """
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)
    grid = {}
    for rank in (0, settings.rank):
        for l2 in settings.l2s[: 1 if rank == 0 else None]:  # without features l2 has no effect
            for l2_bias in settings.l2_biases:
                factors, history = _fit(part, rank, l2, l2_bias, settings, validation)
                grid[rank, l2, l2_bias] = score(factors, validation)["log_loss"], history.best_epoch + 1
    on_test = {}
    base = float(train.value.mean())
    constant = models.baselines.global_mean(train)
    fitted = {"base rate": _with_mu(constant, np.log(base / (1 - base)))}
    chosen = {}
    for name, rank in (("biases", 0), ("factors", settings.rank)):
        chosen[name] = min((point for point in grid if point[0] == rank), key=lambda point: grid[point][0])
        factors, _ = _fit(train, *chosen[name], settings, iterations=grid[chosen[name]][1])
        fitted[name] = factors
    rows, by_user = [], {}
    errors: dict[str, float] = {}
    for name, factors in fitted.items():
        on_test[name] = score(factors, test)
        losses_of_labels = _log_losses(factors, test)
        by_user[name] = harness.user_sums("log_loss", losses_of_labels, test)
        logit = models.predict(factors, jnp.asarray(test.user), jnp.asarray(test.item))
        auc_error = harness.auc_error(logit, jnp.asarray(test.value), test)
        _, log_loss_error = harness.ratio_error(losses_of_labels, test)
        errors |= {f"{name.replace(' ', '_')}_test_log_loss_se": log_loss_error}
        errors |= {f"{name.replace(' ', '_')}_test_auc_se": auc_error}
        rows.append(
            {
                "model": name,
                "test log-loss": harness.with_error(on_test[name]["log_loss"], log_loss_error),
                "test AUC": harness.with_error(on_test[name]["auc"], auc_error),
            }
        )
    harness.table(rows)
    comparison = harness.compare(by_user, ("base rate", "biases"), metric="log_loss", lower_is_better=True)
    _, l2, l2_bias = chosen["factors"]
    print(f"chosen: l2 {l2:g}, l2_bias {l2_bias:g}, {grid[chosen['factors']][1]} steps")
    values = {f"{name.replace(' ', '_')}_test_{k}": v for name, s in on_test.items() for k, v in s.items()}
    values |= {name: error for name, error in errors.items() if not np.isnan(error)}
    return values | {"l2": l2, "l2_bias": l2_bias, "validation_log_loss": grid[chosen["factors"]][0]}, comparison


def _log_losses(factors: Factors, labels: Ratings) -> np.ndarray:
    """The log-loss of every label."""
    logit = models.predict(factors, jnp.asarray(labels.user), jnp.asarray(labels.item))
    loss = binary_cross_entropy(logit, jnp.asarray(labels.value, jnp.float32))
    return np.asarray(loss, np.float64)


def score(factors: Factors, labels: Ratings) -> dict[str, float]:
    """Log-loss and AUC of a model whose predictions are logits."""
    logit = models.predict(factors, jnp.asarray(labels.user), jnp.asarray(labels.item))
    y = jnp.asarray(labels.value)
    return {"log_loss": float(metrics.log_loss(logit, y)), "auc": float(metrics.auc(logit, y))}


def _clicked(ratings: Ratings, train: Ratings, test: Ratings, settings: Settings) -> tuple[Ratings, Ratings]:
    """Clicks of (train, test). Zeros are sampled once, from pairs in neither part, and split in the same proportion."""
    rng = np.random.default_rng(settings.seed)
    sampled = data.labels.with_sampled_negatives(ratings, per_positive=settings.zeros_per_click, rng=rng)
    zeros = sampled.take(sampled.value == 0)
    zeros_train, zeros_test = data.splits.random(zeros, test_fraction=len(test) / len(ratings), rng=rng)
    ones = lambda part: Ratings(part.user, part.item, np.ones(len(part), np.float32), part.n_users, part.n_items)
    return harness.together(ones(train), zeros_train), harness.together(ones(test), zeros_test)


def _fit(
    train: Ratings,
    rank: int,
    l2: float,
    l2_bias: float,
    settings: Settings,
    validation: Ratings | None = None,
    *,
    iterations: int | None = None,
) -> tuple[Factors, Any]:
    base = float(train.value.mean())
    key = jax.random.key(settings.seed)
    init = models.init(train.n_users, train.n_items, rank, key=key, mu=np.log(base / (1 - base)))
    return fit(
        partial(losses.closed_form.cost, l2=l2, l2_bias=l2_bias, loss=losses.logistic),
        init,
        [data.linked(train)],
        optimizer=optax.adam(settings.rate),
        key=key,
        epochs=settings.iterations if iterations is None else iterations,
        validate=None if validation is None else lambda factors: score(factors, validation)["log_loss"],
        patience=None if validation is None else settings.patience,
        progress=False,
    )


def _with_mu(factors: Factors, mu: float) -> Factors:
    return Factors(factors.w, factors.b, factors.x, factors.c, jnp.asarray(mu, jnp.float32))


def _draw(axes: Any, values: dict[str, Any], settings: Settings) -> None:
    names = ("base_rate", "biases", "factors")
    for shift, reading in ((-0.2, "liked"), (0.2, "clicked")):
        heights = [values[f"{reading}_{name}_test_auc"] for name in names]
        axes.bar(np.arange(3) + shift, heights, width=0.38, label=reading)
    axes.set_xticks(np.arange(3), [name.replace("_", " ") for name in names])
    axes.set(ylabel="AUC on test", ylim=(0.45, 1.0), title=f"Binary labels on {settings.data} {settings.split}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
