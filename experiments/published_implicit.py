"""Implicit feedback, compared with published figures: the same interactions, the same splits, the same metrics.

gowalla: LightGCN's split; the whole catalog is ranked but for what the user has in train. Recall@20, NDCG@20.
ml-1m-ncf: each user's held-out film among 99 given negatives; ties count against the model. HR@10, NDCG@10.
ml-100k-strong, ml-1m-strong: a fifth of the users is not in train; 80 % of their films rated 4 or 5 are given, and the
others are to be found in the whole catalog. Recall@20, NDCG@100. irspack's rows are run on the same split, settings
chosen in the same way, if `--peers` names the Python of an environment that has it.

There are two stages, so that test cannot choose:

    python -m experiments.published_implicit --stage choose    picks settings on a validation part cut from train
    python -m experiments.published_implicit                   fits those settings on train and reads test, once

The first stage writes experiments/published_implicit_choices.json, which is committed before the second is run; the
second raises for a method that is named and has no choice there, and says which others have none. One row is one
command: `--tables gowalla --methods closed_form`. Both stages resume where they stopped: every row is written as soon
as it is done, its users' figures too, so that rows of several commands are compared pairwise. The methods are in
`experiments.implicit_methods`.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import choices, harness
from experiments.implicit_grids import GRIDS
from experiments.implicit_methods import METHODS, Context, Fit
from jaxrec import check, data, evaluation
from jaxrec.evaluation import Evaluation
from jaxrec.types import Ratings

CHOICES = Path(__file__).with_name("published_implicit_choices.json")
NAME = "published_implicit"
LIKED = 4.0  # the lowest rating that is an interaction, where ratings are known and the protocol is ours


class Parts(NamedTuple):
    """A split: what models are fitted to, what they know of the users that are ranked for, and what is to be found."""

    train: Ratings
    given: Ratings  # the histories of the users at the time of scoring: `train`, or those of users who are not in it
    test: Ratings
    negatives: np.ndarray | None = None


@dataclass(frozen=True)
class Table:
    """A protocol.

    Attributes:
        parts: seed -> its published split, or ours.
        validation: (train, seed) -> a split of train by the same protocol.
        metrics: the figures, as `evaluate` names them; settings are chosen by the last one.
        published: model -> the same figures, from its source.
        ties: how ties count.
    """

    parts: Callable[[int], Parts]
    validation: Callable[[Ratings, int], Parts]
    metrics: tuple[str, str]
    published: dict[str, tuple[float, float]]
    ties: str = "lowest_id"


@dataclass(frozen=True)
class Settings:
    """The stage, and the rows."""

    stage: str = "test"  # or 'choose'
    tables: tuple[str, ...] = ("gowalla", "ml-1m-ncf", "ml-100k-strong", "ml-1m-strong")
    methods: tuple[str, ...] = ()  # (): all; where test is read, all that have a choice
    peers: str = ""  # the Python of an environment with irspack; '' leaves its rows out
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Runs one stage; returns the choices, or what it wrote to OUT/published_implicit.json."""
    check.choice("stage", settings.stage, ("choose", "test"))
    for name in settings.tables:
        check.choice("tables", name, tuple(TABLES))
    for name in settings.methods:
        check.choice("methods", name, tuple(METHODS))
    return _choose_all(settings) if settings.stage == "choose" else _test_all(settings)


# ------------------------------------------------------------------------------------------- the protocols


def _gowalla(seed: int) -> Parts:
    train, test = data.splits.canonical(data.load("gowalla"), "lightgcn")
    return Parts(train, train, test)


def _random_tenth(train: Ratings, seed: int) -> Parts:
    part, validation = data.splits.random(train, test_fraction=0.1, rng=seed)
    return Parts(part, part, validation)


def _ncf(seed: int) -> Parts:
    dataset = data.load("ml-1m-ncf")
    train, test = data.splits.canonical(dataset, "leave-one-out")
    return Parts(_clicks(train), _clicks(train), _clicks(test), dataset.negatives)


def _one_out(train: Ratings, seed: int) -> Parts:
    """One film of every user, drawn at random (there are no times), among 99 that the user does not have in train."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    held_out = np.zeros(len(train), bool)
    held_out[order[np.unique(train.user[order], return_index=True)[1]]] = True
    has = np.zeros((train.n_users, train.n_items), bool)
    has[train.user, train.item] = True
    draw = np.where(has, np.inf, rng.random(has.shape, np.float32))
    negatives = np.argpartition(draw, 99, axis=1)[:, :99].astype(np.int32)
    part = train.take(~held_out)
    return Parts(part, part, train.take(held_out), negatives)


def _strong(name: str) -> Callable[[int], Parts]:
    def parts(seed: int) -> Parts:
        ratings = data.load(name).ratings
        return _users_out(_clicks(ratings.take(ratings.value >= LIKED)), seed)

    return parts


def _users_out(ratings: Ratings, seed: int) -> Parts:
    train, given, test = data.splits.by_user(ratings, test_fraction=0.2, given_fraction=0.8, rng=seed)
    return Parts(train, given, test)


def _clicks(ratings: Ratings) -> Ratings:
    """The same pairs with values of 1."""
    return Ratings(ratings.user, ratings.item, np.ones(len(ratings), np.float32), ratings.n_users, ratings.n_items)


# Published figures: FIELD.md of the project's notes; their papers and the BARS leaderboard.
TABLES: dict[str, Table] = {
    "gowalla": Table(
        _gowalla,
        _random_tenth,
        ("recall@20", "ndcg@20"),
        {
            "ItemKNN": (0.157, 0.121),
            "MF-BPR": (0.163, 0.138),
            "Mult-VAE": (0.164, 0.134),
            "EASE": (0.177, 0.147),
            "LightGCN": (0.183, 0.155),
            "GF-CF": (0.185, 0.152),
            "SimpleX": (0.1872, 0.1557),
            "Adap-tau": (0.1901, 0.1590),
            "BSPM": (0.1921, 0.1597),
            "ChebyCF": (0.1941, 0.1616),
        },
    ),
    "ml-1m-ncf": Table(
        _ncf, _one_out, ("hit_rate@10", "ndcg@10"), {"iALS, d = 64": (0.722, 0.445), "iALS": (0.730, 0.453)}, "worst"
    ),
    "ml-100k-strong": Table(_strong("ml-100k"), _users_out, ("recall@20", "ndcg@100"), {}),
    "ml-1m-strong": Table(_strong("ml-1m"), _users_out, ("recall@20", "ndcg@100"), {}),
}
LABELS = {"hit_rate@10": "hr@10"}  # the names of figures in the JSON, where they differ from `evaluate`'s


def ranked(scorer: Any, parts: Parts, table: Table) -> Evaluation:
    """Every user's figures: a scorer of the users of `parts.given`, whose items are not ranked."""
    names = {name: tuple(name.split("@")) for name in table.metrics}
    lengths = sorted({int(k) for _, k in names.values()})
    found = evaluation.evaluate(
        scorer,
        parts.given,
        parts.test,
        k=lengths,
        metrics=[metric for metric, _ in names.values()],
        negatives=parts.negatives,
        ties=table.ties,  # type: ignore[arg-type]
    )
    per_user = {LABELS.get(name, name): found.per_user[name] for name in table.metrics}
    return Evaluation(per_user, found.n_users, found.left_out, found.protocol, found.user_ids)


# ------------------------------------------------------------------------------------------- the stages


def _rows(settings: Settings) -> Iterator[tuple[str, str]]:
    found = choices.read(CHOICES)
    for table in settings.tables:
        here = [
            name for name, grids in GRIDS.items() if table in grids and (settings.peers or not METHODS[name].is_peer)
        ]
        yield from ((table, method) for method in choices.methods(settings, table, found, here) if method in here)


def _choose_all(settings: Settings) -> dict[str, Any]:
    found = choices.read(CHOICES)
    for name, method in _rows(settings):
        if method not in found.get(name, {}):
            context = Context(settings.seed, found.get(name, {}), settings.peers)
            best = choose(METHODS[method].fit, GRIDS[method][name], TABLES[name], context)
            found = choices.add(CHOICES, name, method, best)
        print(f"{name}, {method}: {found[name][method]}", flush=True)
    print(f"\n{CHOICES}: commit it, then run without --stage.")
    return found


def choose(fit: Fit, grid: list[dict[str, Any]], table: Table, context: Context) -> dict[str, Any]:
    """The point of the grid with the best figures on a validation part of train; test is not read."""
    parts = table.validation(table.parts(context.seed).train, context.seed)
    scorer_of = fit(parts.train, parts.given, context)
    *others, by = (LABELS.get(metric, metric) for metric in table.metrics)
    best: dict[str, Any] = {}
    for point in grid:
        found = ranked(scorer_of(point), parts, table).mean
        print(f"  {point}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in found.items()), flush=True)
        if not best or found[by] > best[f"validation_{by}"]:
            best = {"settings": point} | {f"validation_{metric}": found[metric] for metric in (*others, by)}
    return best | {"settings_tried": len(grid)}


def _test_all(settings: Settings) -> dict[str, Any]:
    start = time.perf_counter()
    chosen = choices.read(CHOICES)
    folder = Path(settings.out) / NAME
    previous = Path(settings.out) / f"{NAME}.json"
    values: dict[str, Any] = json.loads(previous.read_text())["metrics"] if previous.exists() else {}
    for name, method in _rows(settings):
        row, table = f"{name}/{method}", TABLES[name]
        choice = chosen.get(name, {}).get(method)
        if choice is None:
            raise ValueError(f"{row}: no settings in {CHOICES.name}. Run with --stage choose; commit it.")
        parts = table.parts(settings.seed)
        harness.audit(parts.given, parts.test, settings, name=name)
        users = folder / f"{name}_{method}.npz"
        if values.get(f"{row}/settings") != choice["settings"] or not users.exists():
            began = time.perf_counter()
            context = Context(settings.seed, chosen[name], settings.peers)
            scorer = METHODS[method].fit(parts.train, parts.given, context)(choice["settings"])
            found = ranked(scorer, parts, table)
            seconds = round(time.perf_counter() - began, 1)
            harness.write(users, partial(_save, found))
            values |= {f"{row}/{metric}": mean for metric, mean in found.mean.items()}
            values |= {f"{row}/{metric}_se": error for metric, error in found.standard_error.items()}
            values |= {f"{row}/{key}": value for key, value in choice.items()}
            values |= {f"{row}/seconds": seconds, f"{row}/peak_gb": _peak_gigabytes()}
        figures = ", ".join(f"{label} {values[f'{row}/{label}']:.4f}" for label in _labels(table))
        print(f"{row}: {figures}; {values[f'{row}/seconds']} s", flush=True)
        harness.report(NAME, settings, values, time.perf_counter() - start)
    comparisons: dict[str, Any] = {}
    for name in settings.tables:
        harness.table(_lines(name, values))
        comparisons |= _compared(name, values, folder)
    result = harness.report(NAME, settings, values, time.perf_counter() - start, comparison=comparisons)
    harness.plot(NAME, settings, lambda axes: _draw(axes, settings.tables[0], values))
    return result


def _save(found: Evaluation, path: Path) -> None:
    with path.open("wb") as file:  # savez would append .npz to a name
        np.savez_compressed(file, allow_pickle=False, **found.per_user)


def _labels(table: Table) -> list[str]:
    return [LABELS.get(metric, metric) for metric in table.metrics]


def _peak_gigabytes() -> float:
    """The most memory that the process has had so far: the row's own, if it is the only row of the command."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 2**30, 2)


def _done(name: str, values: dict[str, Any]) -> list[str]:
    """The methods of a table that were measured so far, the best first by the last figure."""
    *_, by = _labels(TABLES[name])
    done = [method for method in METHODS if f"{name}/{method}/{by}" in values]
    return sorted(done, key=lambda method: -values[f"{name}/{method}/{by}"])


def _lines(name: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table: the methods by rank, then the published figures."""
    table, labels = TABLES[name], _labels(TABLES[name])
    lines = []
    for method in _done(name, values):
        row = f"{name}/{method}"
        cells = {label: harness.with_error(values[f"{row}/{label}"], values[f"{row}/{label}_se"]) for label in labels}
        cost = {"seconds": str(values[f"{row}/seconds"]), "GB": str(values[f"{row}/peak_gb"])}
        lines.append({name: method if METHODS[method].is_peer else f"jaxrec: {method}"} | cells | cost)
    for model, figures in table.published.items():
        cells = {label: f"{figure:.4f}" for label, figure in zip(labels, figures, strict=True)}
        lines.append({name: model} | cells | {"seconds": "-", "GB": "-"})
    return lines


def _compared(name: str, values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paired tests of a table's methods against the strongest baseline, for JSON; empty without one. Prints them."""
    done = [method for method in _done(name, values) if (folder / f"{name}_{method}.npz").exists()]
    baselines = [method for method in done if METHODS[method].is_baseline]
    if not baselines or len(done) < 2:
        return {}
    results = {method: _load(folder / f"{name}_{method}.npz") for method in done}
    *_, by = _labels(TABLES[name])
    found = evaluation.compare_all(results, baseline=baselines[0], metrics=[by])
    print(f"{name}, against the strongest baseline:\n{found}")
    return {name: found.to_dict()}


def _load(path: Path) -> Evaluation:
    with np.load(path, allow_pickle=False) as arrays:
        per_user = dict(arrays)
    n_users = int(np.isfinite(next(iter(per_user.values()))).sum())
    return Evaluation(per_user, n_users, {}, {})


def _draw(axes: Any, name: str, values: dict[str, Any]) -> None:
    """The last figure of every model of a table, ours with 95 % intervals, the published ones in gray."""
    *_, by = _labels(TABLES[name])
    ours = [
        (values[f"{name}/{method}/{by}"], f"jaxrec: {method}", 1.96 * values[f"{name}/{method}/{by}_se"])
        for method in _done(name, values)
    ]
    models = sorted([*ours, *((figures[-1], model, 0.0) for model, figures in TABLES[name].published.items())])
    figures, labels, errors = zip(*models, strict=True)
    colors = ["C0" if label.startswith("jaxrec") else "C7" for label in labels]
    axes.barh(labels, figures, xerr=errors, color=colors)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel=by, title=name)


if __name__ == "__main__":
    harness.run(main, Settings)
