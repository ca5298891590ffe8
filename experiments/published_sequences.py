"""jaxrec compared with published figures of the next item: the same sequences, the same split, the same metrics.

The protocol of all tables: each user's last item is test, the one before it is validation, the rest is train. The whole
catalog is ranked, with the items that the user has seen masked, as published tables do, and also unmasked. Settings are
chosen by NDCG@10 on validation, fitted on train. On test a model is read twice: fitted on train and validation, as one
would serve it; and fitted on train only, with the validation item in the history, as published networks are, which stop
on validation (`_train_only`: compare these). There are two stages, so that test cannot choose:

    python -m experiments.published_sequences --stage choose    every candidate on validation
    python -m experiments.published_sequences                   fits the best of them and reads test, once

The first writes experiments/published_sequences_choices.json, with the validation figures of all candidates, which is
committed before the second is run; the second raises for a method that is named and has no choice there, and says
which others have none. Both resume where they stopped: every candidate and every row is written as soon as it is done.
One row is `--tables amazon-beauty --methods ridge`. With more candidates here only the new ones are run.

Methods (`experiments.sequence_methods`): popularity; a Markov chain of first order; an item kNN of the last items, by
the cosine of users; the sequence ridge (`solvers.sequence_ridge`); and networks, a causal transformer (`attention`) and
a `gru`, which stop early on validation when settings are chosen, and take as many epochs for test. The row of attention
is the mean of three seeds; `_ensemble` has the figures of their mean scores.
"""

import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import choices, harness
from experiments.sequence_methods import METHODS, NETWORKS, SEEDS, Choice, fit_network, measure, with_history
from jaxrec import check, data, evaluation
from jaxrec.models import sequence_scorer
from jaxrec.types import Ratings

CHOICES = Path(__file__).with_name("published_sequences_choices.json")

# table -> the dataset's name
TABLES = {
    "ml-1m": "ml-1m-sequences",
    "amazon-beauty": "amazon-beauty",
    "amazon-sports": "amazon-sports",
    "amazon-toys": "amazon-toys",
}

# (HR@10, NDCG@10), seen items masked: the sources' own figures on the same files and the same split. ml-1m: SASRec and
# BERT4Rec as measured by gSASRec's authors (Petrov and Macdonald 2023), cross entropy and 3,000 negatives by Klenitskiy
# and Vasilev 2023, FuXi-alpha by its authors. Amazon: DuoRec's and TIGER's papers, eSASRec's table (arXiv 2508.06450).
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "ml-1m": {
        "SASRec": (0.2500, 0.1341),
        "BERT4Rec": (0.2843, 0.1537),
        "gSASRec": (0.3003, 0.1726),
        "SASRec, full softmax": (0.3152, 0.1821),
        "SASRec, 3,000 negatives": (0.3159, 0.1857),
        "FuXi-alpha": (0.3164, 0.1813),
    },
    "amazon-beauty": {
        "SASRec": (0.0605, 0.0318),
        "DuoRec": (0.0845, 0.0443),
        "TIGER": (0.0648, 0.0384),
        "SASRec, sampled softmax": (0.0921, 0.0531),
        "eSASRec": (0.0928, 0.0523),
    },
    "amazon-sports": {"eSASRec's table, best": (0.0569, 0.0323)},
    "amazon-toys": {"eSASRec's table, best": (0.0970, 0.0580)},
}


@dataclass(frozen=True)
class Settings:
    """The stage, the tables and the methods."""

    stage: str = "test"  # or 'choose'
    tables: tuple[str, ...] = tuple(TABLES)
    methods: tuple[str, ...] = ()  # (): all; where test is read, all that have a choice
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Runs one stage; returns the choices, or what it wrote to OUT/published_sequences.json."""
    check.choice("stage", settings.stage, ("choose", "test"))
    for name in settings.tables:
        check.choice("tables", name, tuple(TABLES))
    for name in settings.methods:
        check.choice("methods", name, tuple(METHODS))
    return _choose_all(settings) if settings.stage == "choose" else _test_all(settings)


@dataclass(frozen=True)
class Parts:
    """The three parts of a table's sequences.

    Attributes:
        train: all but the last two events of each user.
        validation: the last but one.
        rest: train and validation.
        test: the last.
    """

    train: Ratings
    validation: Ratings
    rest: Ratings
    test: Ratings


def parts(table: str) -> Parts:
    """The published split of a table."""
    ratings = data.load(TABLES[table]).ratings
    rest, test = data.splits.leave_last(ratings, order="position")
    train, validation = data.splits.leave_last(rest, order="position")
    return Parts(train, validation, rest, test)


MARKOV = [{"l2": 1.0}]  # l2 scales the scores of a user, and changes no order
KNN = [{"power": power, "window": window} for power, window in ((0.0, 1), (1.0, 50), (0.5, 50))]
AMAZON = {"powers": [1.0], "window": 50, "l2": 10.0}
SMOOTHED = AMAZON | {"future": 0.5, "horizon": 8, "backward": 0.3}

# table -> method -> candidates; a ridge also tries each of `POPULARITY_POWERS`, which need no other fit.
CANDIDATES: dict[str, dict[str, list[Choice]]] = {
    "ml-1m": {
        "ridge": [
            {"decays": [0.0, 0.7, 0.95], "window": 200, "l2": 1000.0, "future": 0.3, "horizon": 6},
            {"decays": [0.0, 0.6, 0.9], "powers": [0.3], "window": 200, "l2": 1000.0, "future": 0.3, "horizon": 6},
        ],
    },
    "amazon-beauty": {"ridge": [AMAZON] + [SMOOTHED | {"l2": l2} for l2 in (10.0, 20.0, 40.0, 80.0, 160.0)]},
    "amazon-sports": {"ridge": [SMOOTHED | {"l2": 160.0}]},
    "amazon-toys": {"ridge": [SMOOTHED | {"l2": l2} for l2 in (40.0, 160.0)]},
}

SMALL = {"window": 50, "width": 64, "layers": 1, "heads": 1, "dropout": 0.4, "learning_rate": 1e-3, "rows": 32}
SMALL |= {"negatives": 512, "epochs": 120, "patience": 8}
LONG = SMALL | {"window": 200, "layers": 2, "heads": 2, "dropout": 0.2, "rows": 16, "negatives": 1024, "patience": 5}
# Beauty on validation: SMALL is best after 90 epochs, FASTER after 69, and better. Toys and Sports try that alone.
FASTER = SMALL | {"dropout": 0.5, "learning_rate": 3e-3, "negatives": 1024}
# On ml-1m a rate that falls is best: 0.162 after 40 epochs, where a constant one stops at 0.151 after 32.
FALLING = LONG | {"epochs": 40, "patience": 40, "cosine": True}
SIZES = {
    "ml-1m": [LONG | {"dropout": 0.3, "learning_rate": 3e-3}, FALLING | {"learning_rate": 3e-3}, FALLING],
    "amazon-beauty": [SMALL, FASTER],
    "amazon-sports": [FASTER],
    "amazon-toys": [FASTER],
}
for _name, _sizes in SIZES.items():
    CANDIDATES[_name]["attention"] = _sizes
    CANDIDATES[_name]["gru"] = [{name: value for name, value in _sizes[-1].items() if name != "heads"}]
for _table in CANDIDATES.values():
    _table |= {"popularity": [{}], "markov": MARKOV, "knn": KNN}
POPULARITY_POWERS = (0.0, 0.1, 0.2)


# ------------------------------------------------------------------------------------------- the stages


def _choose_all(settings: Settings) -> dict[str, Any]:
    for table in settings.tables:
        split = parts(table)
        for method in choices.methods(settings, table, {}, CANDIDATES[table]):
            for candidate in CANDIDATES[table][method]:
                if candidate not in [_candidate(each) for each in _tried(table, method)]:
                    lines = validated(split, method, candidate)
                    tried = [*_tried(table, method), *lines]  # read again: another process may have added some
                    best = max(tried, key=lambda each: each["validation_ndcg@10"])
                    choices.add(CHOICES, table, method, {"tried": tried, "choice": best})
                    for line in lines:
                        print(f"{table}, {method}: {line}", flush=True)
            print(f"{table}, {method}, chosen: {choices.read(CHOICES)[table][method]['choice']}", flush=True)
    print(f"\n{CHOICES}: commit it, then run without --stage.")
    return choices.read(CHOICES)


def _tried(table: str, method: str) -> list[Choice]:
    return choices.read(CHOICES).get(table, {}).get(method, {}).get("tried", [])


def _candidate(tried: Choice) -> Choice:
    """The candidate of a line that `validated` wrote."""
    added = ("popularity_power", "best_epochs", "validation_hr@10", "validation_ndcg@10", "seconds")
    return {name: value for name, value in tried.items() if name not in added}


def validated(split: Parts, method: str, candidate: Choice) -> list[Choice]:
    """The candidate with its figures on validation; a ridge once for each of `POPULARITY_POWERS`. Test is not read."""
    began = time.perf_counter()
    extra: Choice = {}
    scorer: Any
    if method in NETWORKS:
        model = NETWORKS[method](split.train, candidate)
        scorer, epochs = fit_network(model, split.train, candidate, split.validation)
        extra = {"best_epochs": epochs}
    else:
        scorer = METHODS[method](split.train, candidate)
    variants: dict[float | None, Any] = {None: scorer}
    if method == "ridge":
        count = np.maximum(np.bincount(split.train.item, minlength=split.train.n_items), 1)
        variants = {power: scorer.scaled(count**-power) for power in POPULARITY_POWERS}
    lines = []
    for power, variant in variants.items():
        mean = measure(variant, split.train, split.validation).mean
        line = candidate | extra | ({"popularity_power": power} if power is not None else {})
        line |= {"validation_hr@10": round(mean["hit_rate@10"], 5), "validation_ndcg@10": round(mean["ndcg@10"], 5)}
        lines.append(line | {"seconds": round(time.perf_counter() - began, 1)})
    return lines


def _test_all(settings: Settings) -> dict[str, Any]:
    start = time.perf_counter()
    chosen = choices.read(CHOICES)
    previous = Path(settings.out) / "published_sequences.json"
    done: dict[str, Any] = json.loads(previous.read_text())["metrics"] if previous.exists() else {}
    comparisons, lines = {}, []
    for table in settings.tables:
        split = parts(table)
        harness.audit(split.rest, split.test, settings, name=table)
        found: dict[str, evaluation.Evaluation] = {}
        methods = choices.methods(settings, table, chosen, CANDIDATES[table])
        for method in methods:
            choice = chosen.get(table, {}).get(method, {}).get("choice")
            if choice is None:
                raise ValueError(
                    f"{table}, {method}: no settings chosen in {CHOICES.name}. Run with --stage choose; commit it."
                )
            row, users = f"{table}/{method}", Path(settings.out) / "published_sequences" / f"{table}_{method}.npz"
            if done.get(f"{row}/choice") != choice or not users.exists():
                values, per_user = tested(split, method, choice)
                done |= {f"{row}/{name}": value for name, value in values.items()}
                harness.write(users, partial(save_users, per_user))
            with np.load(users) as per_user:
                found[method] = evaluation.Evaluation(dict(per_user), len(split.test), {}, {}, split.test.user_ids)
            cells = ", ".join(f"{name} {done[f'{row}/{name}']:.4f}" for name in ("hr@10", "ndcg@10"))
            print(f"{row}: {cells}, {done[f'{row}/seconds']:.0f} s", flush=True)
            harness.report("published_sequences", settings, done, time.perf_counter() - start)
        comparisons[table] = compared(found)
        lines += rows(table, methods, done)
    harness.table(lines)
    seconds = time.perf_counter() - start
    result = harness.report("published_sequences", settings, done, seconds, comparison=comparisons)
    harness.plot("published_sequences", settings, lambda axes: _draw(axes, lines))
    return result


def save_users(per_user: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes every user's metrics, for the paired tests of a later run."""
    with path.open("wb") as file:
        np.savez(file, **dict[str, Any](per_user))


def tested(split: Parts, method: str, choice: Choice) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """The figures of a choice on test, fitted on train and validation; and every user's. Means over the seeds."""
    runs = [choice | {"seed": seed} for seed in SEEDS[method]] if method in SEEDS else [choice]
    began = time.perf_counter()
    scorers = fitted(method, split.rest, runs)
    fit_seconds = time.perf_counter() - began
    masked = _mean_evaluation([measure(scorer, split.rest, split.test) for scorer in scorers])
    seconds = time.perf_counter() - began
    unmasked = _mean_evaluation([measure(scorer, split.rest, split.test, mask_seen=False) for scorer in scorers])
    train_only = [with_history(scorer, split.rest) for scorer in fitted(method, split.train, runs)]
    as_published = [measure(scorer, split.rest, split.test).mean for scorer in train_only]
    as_published_unmasked = [measure(scorer, split.rest, split.test, mask_seen=False).mean for scorer in train_only]
    over_seeds = lambda means, name: float(np.mean([mean[name] for mean in means]))
    values = {
        "hr@10": masked.mean["hit_rate@10"],
        "ndcg@10": masked.mean["ndcg@10"],
        "hr@10_se": masked.standard_error["hit_rate@10"],
        "ndcg@10_se": masked.standard_error["ndcg@10"],
        "hr@10_unmasked": unmasked.mean["hit_rate@10"],
        "ndcg@10_unmasked": unmasked.mean["ndcg@10"],
        "hr@10_train_only": over_seeds(as_published, "hit_rate@10"),
        "ndcg@10_train_only": over_seeds(as_published, "ndcg@10"),
        "ndcg@10_unmasked_train_only": over_seeds(as_published_unmasked, "ndcg@10"),
        "fit_seconds": round(fit_seconds / len(runs), 1),
        "seconds": round(seconds / len(runs), 1),
        "validation_ndcg@10": choice["validation_ndcg@10"],
        "choice": choice,
        "device": jax.devices()[0].device_kind,
    }
    if len(runs) > 1:
        for suffix, members in (("", scorers), ("_train_only", train_only)):
            ensemble = measure(sequence_scorer.ensemble_vectors(members), split.rest, split.test).mean
            values[f"hr@10{suffix}_ensemble"] = ensemble["hit_rate@10"]
            values[f"ndcg@10{suffix}_ensemble"] = ensemble["ndcg@10"]
    return values, masked.per_user


def fitted(method: str, train: Ratings, runs: list[Choice]) -> list[Any]:
    """A scorer of each run, all fitted at once: one small network leaves half of a second core idle."""
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(lambda run: jax.block_until_ready(METHODS[method](train, run)), runs))


def _mean_evaluation(found: list[evaluation.Evaluation]) -> evaluation.Evaluation:
    """Every user's mean over the seeds."""
    first = found[0]
    if len(found) == 1:
        return first
    per_user = {name: np.mean([each.per_user[name] for each in found], axis=0) for name in first.per_user}
    return evaluation.Evaluation(per_user, first.n_users, {}, {}, first.user_ids)


def compared(found: dict[str, evaluation.Evaluation]) -> dict[str, Any] | None:
    """Paired tests of every method with the strongest of the others; None for one method."""
    if len(found) < 2:
        return None
    best = max(found, key=lambda name: found[name].mean["ndcg@10"])
    others = evaluation.compare_all(found, baseline=best, metrics=["hit_rate@10", "ndcg@10"])
    print(others)
    return others.to_dict()


def rows(table: str, methods: Iterable[str], done: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a table: jaxrec's with standard errors over users, and the published ones."""
    lines = []
    for method in methods:
        get = lambda name, row=f"{table}/{method}": done[f"{row}/{name}"]
        cells = {"HR@10": harness.with_error(get("hr@10"), get("hr@10_se"))}
        cells |= {"NDCG@10": harness.with_error(get("ndcg@10"), get("ndcg@10_se"))}
        cells |= {"train only": f"{get('hr@10_train_only'):.4f} {get('ndcg@10_train_only'):.4f}"}
        cells |= {"unmasked": f"{get('hr@10_unmasked'):.4f} {get('ndcg@10_unmasked'):.4f}"}
        lines.append({"data": table, "model": f"jaxrec: {method}"} | cells | {"seconds": f"{get('seconds'):.0f}"})
    for model, (hit_rate, ndcg) in PUBLISHED[table].items():
        line = {"data": table, "model": model, "HR@10": f"{hit_rate:.4f}", "NDCG@10": f"{ndcg:.4f}"}
        lines.append(line | {"train only": "-", "unmasked": "-", "seconds": "-"})
    return lines


def _draw(axes: Any, lines: list[dict[str, Any]]) -> None:
    """NDCG@10 of what is fitted to train alone, as the published models are; they are gray."""
    names = [f"{line['data']}: {line['model']}" for line in lines][::-1]
    ndcg = lambda line: line["NDCG@10"] if line["train only"] == "-" else line["train only"].split()[-1]
    colors = ["C0" if "jaxrec" in name else "C7" for name in names]
    axes.barh(names, [float(ndcg(line)) for line in lines][::-1], color=colors)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("NDCG@10, fitted to train only, seen items masked")


if __name__ == "__main__":
    harness.run(main, Settings)
