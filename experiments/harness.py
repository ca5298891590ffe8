"""Shared by all experiments: settings from the command line, a split, errors, a table, a JSON file, a plot."""

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrec
from jaxrec import data, evaluation, metrics, models
from jaxrec.atomic import replacing
from jaxrec.counting_sort import group_by
from jaxrec.types import Dataset, Factors, Ratings


@dataclass(frozen=True)
class Settings:
    """Settings of every experiment; each experiment adds its own."""

    data: str = "ml-100k"  # a name that data.load knows, or 'synthetic'
    path: str = ""  # the folder of its files; '' searches the usual places
    split: str = "u1"  # u1 .. u5 (ml-100k's own), or 'random' (a fifth, drawn with the seed)
    seed: int = 0
    out: str = "results"  # the folder for NAME.json and the plot


def run(main: Callable[[Any], dict[str, Any]], settings_type: type[Any]) -> None:
    """Runs main with settings from the command line; an unknown or mistyped option is an error (exit status 2)."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {sys.modules[main.__module__].__spec__.name}",  # type: ignore[union-attr]
        description=sys.modules[main.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for f in dataclasses.fields(settings_type):
        if isinstance(f.default, tuple):
            kind = type(f.default[0])
            parser.add_argument(f"--{f.name}", type=kind, nargs="+", default=f.default, help=f"default: {f.default}")
        else:
            parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default, help=f"default: {f.default!r}")
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(parser.parse_args()).items()}
    main(settings_type(**options))


def load(settings: Settings) -> Dataset:
    """Loads the dataset that the settings name; prints its source."""
    if settings.data == "synthetic":
        dataset = data.synthetic.low_rank(943, 1682, 100_000, rng=settings.seed)
    else:
        dataset = data.load(settings.data, path=settings.path or None)
    print(f"{dataset.name}: {dataset.ratings}\n  from {dataset.source}")
    return dataset


def split(dataset: Dataset, settings: Settings) -> tuple[Ratings, Ratings]:
    """(train, test) by the settings' split, which is audited."""
    if settings.split == "random":
        train, test = data.splits.random(dataset.ratings, test_fraction=0.2, rng=settings.seed)
    else:
        train, test = data.splits.canonical(dataset, settings.split)
    audit(train, test, settings)
    return train, test


_audits: dict[Any, dict[str, Any]] = {}  # settings -> what `audit` found for them, which `report` writes


def audit(train: Ratings, test: Ratings, settings: Any, *, name: str = "") -> None:
    """Audits a split, prints a line, and keeps what was found for `report`.

    Args:
        train: the ratings that models are fitted to.
        test: the ratings that are predicted.
        settings: of the experiment, as `report` will get them.
        name: which split it is, in an experiment of several: its JSON has an audit for each name.
    """
    found = evaluation.audit(train, test)
    if name:
        _audits[settings] = _audits.get(settings, {}) | {name: found.to_dict()}
    else:
        _audits[settings] = found.to_dict()
    before = found.users_before_others_train
    print(
        f"audit{name and f' of {name}'}: {found.pairs_in_both} pairs in both; not in train: "
        f"{found.unseen_users_share:.1%} of test's users, {found.unseen_items_share:.1%} of its items; "
        + ("no times; " if before is None else f"{before:.1%} of test's users rated before others' latest in train; ")
        + f"{found.near_duplicates} pairs of near-duplicate items; drift of items {found.item_drift:.3f} "
        f"({found.item_drift_if_random:.3f} by chance), of users {found.user_drift:.3f} "
        f"({found.user_drift_if_random:.3f})"
    )


def errors(factors: Factors, ratings: Ratings, scale: tuple[float, float] | None) -> dict[str, float]:
    """RMSE and MAE of a model on ratings; predictions are clipped to the scale, unless it is None."""
    prediction = models.predict(factors, jnp.asarray(ratings.user), jnp.asarray(ratings.item))
    prediction = prediction if scale is None else jnp.clip(prediction, *scale)
    y = jnp.asarray(ratings.value)
    return {"rmse": float(metrics.rmse(prediction, y)), "mae": float(metrics.mae(prediction, y))}


def ranking_metrics(
    factors: Factors, seen: Ratings, liked: Ratings, *, k: int = 10, allowed: np.ndarray | None = None
) -> dict[str, float]:
    """Precision, recall and NDCG of the k best unseen items of the catalog, means over users who liked any item."""
    mask = None if allowed is None else jnp.asarray(allowed)
    measures = {"precision": metrics.precision, "recall": metrics.recall, "ndcg": metrics.ndcg}
    found = evaluation.evaluate(factors, seen, liked, k=k, metrics=measures, allowed=mask)
    return {name.partition("@")[0]: mean for name, mean in found.mean.items()}


def occurrence(ids: np.ndarray) -> np.ndarray:
    """Number of earlier entries with the same id, per entry: `occurrence(ids) < n` selects the first n of each id.

    For example, the ids 3, 1, 3, 3, 1 have the occurrences 0, 0, 1, 2, 1.
    """
    start, order = group_by(ids, int(ids.max(initial=0)) + 1)
    out = np.empty(len(ids), np.int64)
    out[order] = np.arange(len(ids)) - np.repeat(start[:-1], np.diff(start))
    return out


def together(a: Ratings, b: Ratings) -> Ratings:
    """The ratings of a and b, which have the same users and items, in one."""
    join = lambda name: np.concatenate([getattr(a, name), getattr(b, name)])
    return Ratings(join("user"), join("item"), join("value"), a.n_users, a.n_items)


def table(rows: list[dict[str, Any]]) -> None:
    """Prints rows under the keys of the first row; floats with four decimals."""
    cells = [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    header = list(rows[0])
    width = [max(len(r[c]) for r in [header, *cells]) for c in range(len(header))]

    def line(row: list[str]) -> str:
        """The first column is aligned left, the others right."""
        columns = enumerate(zip(row, width, strict=True))
        return "  " + "  ".join(f"{v:<{w}}" if c == 0 else f"{v:>{w}}" for c, (v, w) in columns)

    print("\n".join(["", line(header), line(["-" * w for w in width]), *map(line, cells), ""]))


def report(name: str, settings: Any, values: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Writes OUT/NAME.json atomically and returns its content: settings, audit, flat metrics, seconds, environment.

    The audit is that of the split that `split` made, or that was given to `audit`, with these settings; None if none.
    """
    result = {
        "experiment": name,
        "settings": dataclasses.asdict(settings),
        "audit": _audits.get(settings),
        "metrics": values,
        "seconds": round(seconds, 3),
        "environment": {
            "jaxrec": jaxrec.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "date": time.strftime("%Y-%m-%d"),
        },
    }
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    path = write(Path(settings.out) / f"{name}.json", lambda temporary: temporary.write_text(text))
    print(f"results: {path}")
    return result


def plot(name: str, settings: Any, draw: Callable[[Any], None]) -> None:
    """Writes OUT/NAME.png, drawn by draw(axes); without matplotlib prints how to install it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("plot: left out; it needs matplotlib (pip install 'jaxrec[plots]').")
        return
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    path = write(Path(settings.out) / f"{name}.png", lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    print(f"plot:    {path}")


def write(path: Path, write: Callable[[Path], Any]) -> Path:
    """Writes a file atomically, and its folder if there is none: `write` gets the temporary path that replaces it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(temporary)
    return path
