"""What would another policy have earned? Estimates from logs, against a known truth and against the policy's own log.

First, synthetic logs of the size and the click rates of the real ones, whose truth is known: the bias of each estimator
and the coverage of its intervals, the normal one and the one that allows for skewness ("skew").

Then the Open Bandit data, small-sized: what a fashion shop showed in one week of 2019, 10,000 rows for each of three
campaigns and two policies that ran side by side. The rows have an item, its position (of three), whether it was
clicked, and its propensity. The random policy shows all items alike; BTS is Bernoulli Thompson sampling. From the
random logs the mean click rate of BTS is estimated, and compared with the mean of BTS's own log: does the doubly robust
interval hold it in all three campaigns? The logged mean is an estimate too, from some 50 clicks, so the table also says
how many standard errors (of both) the two are apart.

BTS's probabilities of the items: BTS learned during the week, and its logged propensities are those of the moment (of
one item at one position there are hundreds), of the item that was shown. Its distribution over all items is not in the
data. It is taken to be how often BTS showed each item at each position in its log: the policy's average over the week,
of which the logged mean is the reward. Its clicks are not used. (A second table instead simulates BTS with the
parameters that it began with, before it learned from this week, as the Open Bandit Pipeline does.)

The reward model of the doubly robust estimator: click rates of items at positions, shrunk to the item's rate, which is
shrunk to that of all; cross-fitted, so that no row predicts itself. The click rate of a position, and what the three
items of one page do to one another, are otherwise ignored, as is the user.

The other direction, from the BTS logs to the random policy, shows where it ends: BTS hardly ever shows some items, so a
few rows carry all the weight.

The data are those of the Python package obp 0.4.1: pass its wheel as --path, put it into $JAXREC_DATA, or let pip
download it (once, into the user's cache). Source: Saito, Aihara, Matsutani, Narita 2021, Open Bandit Dataset and
Pipeline: towards realistic and reproducible off-policy evaluation.
"""

import io
import logging
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments import harness
from jaxrec.evaluation import off_policy
from jaxrec.evaluation.off_policy import PolicyValue

WHEEL = "obp-0.4.1-py3-none-any.whl"
SHA256 = "87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208"
CAMPAIGNS = ("all", "men", "women")
ESTIMATORS = ("ips", "snips", "doubly_robust")
POSITIONS = 3


@dataclass(frozen=True)
class Settings:
    """The estimators and the reward model; all were chosen before the data were read."""

    path: str = ""  # the wheel; '' searches the usual places
    level: float = 0.95
    max_weight: float = 0.0  # the weights are clipped to it; 0 does not clip
    folds: int = 10
    shrinkage: float = 200.0  # rows of the coarser rate that are added to each item's and each position's
    draws: int = 100_000  # of BTS with its prior
    replications: int = 500  # of the synthetic log
    rows: int = 10_000  # of each
    seed: int = 0
    out: str = "results"


class Log(NamedTuple):
    """What a policy showed and what was clicked: int32 item and position [n], float32 click and propensity [n]."""

    item: np.ndarray
    position: np.ndarray
    click: np.ndarray
    propensity: np.ndarray


def wheel(path: str) -> Path:
    """The wheel of obp 0.4.1: `path`, or from $JAXREC_DATA, the cache, or pip; its sha256 is checked everywhere.

    Raises:
        FileNotFoundError: `path` does not exist, or the wheel could not be downloaded.
        ValueError: a file that is not the published one.
    """
    import pooch

    given, folder = Path(path).expanduser() if path else None, Path(os.environ.get("JAXREC_DATA", "")).expanduser()
    if given is None and os.environ.get("JAXREC_DATA") and (folder / WHEEL).is_file():
        given = folder / WHEEL
    if given is None:
        try:
            known = f"sha256:{SHA256}"
            cache = pooch.os_cache("jaxrec")
            return Path(pooch.retrieve("obp==0.4.1", known, WHEEL, cache, downloader=_download_by_pip))
        except (OSError, subprocess.SubprocessError) as error:
            raise FileNotFoundError(
                f"{WHEEL} could not be downloaded ({error}). On a machine with a package index run `pip download "
                "obp==0.4.1 --no-deps`, and pass the wheel as --path."
            ) from error
    if not given.is_file():
        raise FileNotFoundError(f"path: expected the wheel {WHEEL}, got {given}, which is no file.")
    if (got := pooch.file_hash(str(given))) != SHA256:
        raise ValueError(f"{given}: expected sha256 {SHA256}, got {got}. Download obp==0.4.1 again.")
    return given


def _download_by_pip(requirement: str, output_file: str, pooch: Any) -> None:
    """A downloader of pooch: a wheel from the index, proxy or mirror configured on this machine."""
    # -I: neither the working folder nor PYTHONPATH says which pip runs
    command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    with tempfile.TemporaryDirectory(dir=Path(output_file).parent) as folder:
        logging.getLogger("jaxrec").warning("Running pip to download %s", requirement)
        command += ["--dest", folder, requirement]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        found = list(Path(folder).glob("*.whl"))
        if run.returncode or not found:
            raise ConnectionError((run.stderr.strip().splitlines() or ["pip has no message"])[-1])
        found[0].replace(output_file)


def read_log(archive: zipfile.ZipFile, policy: str, campaign: str) -> Log:
    """A log in the order of the file; positions from 0."""
    import polars as pl

    content = archive.read(f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv")
    columns = ["item_id", "position", "click", "propensity_score"]
    frame = pl.read_csv(io.BytesIO(content), columns=columns)
    item, position, click, propensity = (frame[name].to_numpy() for name in columns)
    as_float = partial(np.asarray, dtype=np.float32)
    return Log(item.astype(np.int32), (position - 1).astype(np.int32), as_float(click), as_float(propensity))


def read_priors(archive: zipfile.ZipFile, campaign: str) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, beta) of each item's click rate, with which BTS began; a YAML file of lists of numbers."""
    numbers: dict[tuple[str, str], list[float]] = {}
    section = name = ""
    for line in archive.read("obp/policy/conf/prior_bts.yaml").decode().splitlines():
        if line.endswith(":"):
            section, name = (line[:-1], "") if not line.startswith(" ") else (section, line.strip()[:-1])
        elif line.strip():
            numbers.setdefault((section, name), []).append(float(line.strip().removeprefix("- ")))
    return np.array(numbers[campaign, "alpha"]), np.array(numbers[campaign, "beta"])


def average_policy(log: Log, n_items: int) -> np.ndarray:
    """How often each item was shown at each position, [POSITIONS, n_items]; rows sum to 1."""
    count = np.zeros((POSITIONS, n_items))
    np.add.at(count, (log.position, log.item), 1)
    return count / count.sum(axis=1, keepdims=True)


def prior_policy(alpha: np.ndarray, beta: np.ndarray, *, key: Array, draws: int) -> np.ndarray:
    """BTS without learning: each item's rate is drawn from Beta(alpha, beta), and the three best are shown in order."""

    def shown(key: Array) -> Array:
        rate = jax.random.beta(key, jnp.asarray(alpha), jnp.asarray(beta), dtype=jnp.float32)
        return jax.lax.top_k(rate, POSITIONS)[1]

    items = np.asarray(jax.jit(jax.vmap(shown))(jax.random.split(key, draws)))
    return np.stack([np.bincount(items[:, k], minlength=len(alpha)) / draws for k in range(POSITIONS)])


def predict(log: Log, n_items: int, *, folds: int, shrinkage: float, rng: np.random.Generator) -> np.ndarray:
    """Click rates of all items at each row's position, [n, n_items], from the rows of the other folds.

    With the clicks c and rows m of the other folds, and s rows of shrinkage::

        rate = c / m,  rate(i) = (c(i) + s rate) / (m(i) + s),  rate(k, i) = (c(k, i) + s rate(i)) / (m(k, i) + s)
    """
    fold = rng.permutation(len(log.item)) % folds
    clicks, rows = np.zeros((2, folds, POSITIONS, n_items))
    np.add.at(clicks, (fold, log.position, log.item), log.click)
    np.add.at(rows, (fold, log.position, log.item), 1)
    clicks, rows = (table.sum(axis=0) - table for table in (clicks, rows))
    rate = clicks.sum(axis=(1, 2), keepdims=True) / rows.sum(axis=(1, 2), keepdims=True)
    item_clicks, item_rows = (table.sum(axis=1, keepdims=True) for table in (clicks, rows))
    item_rate = (item_clicks + shrinkage * rate) / (item_rows + shrinkage)
    position_rate = (clicks + shrinkage * item_rate) / (rows + shrinkage)
    return position_rate[fold, log.position]


def estimate(
    log: Log, policy: np.ndarray, predictions: np.ndarray, settings: Settings, *, correct_skewness: bool = False
) -> dict[str, PolicyValue]:
    """The estimates of a policy [POSITIONS, n_items] from a log."""
    probabilities = policy[log.position]
    probability = probabilities[np.arange(len(log.item)), log.item]
    options: dict[str, Any] = {"level": settings.level, "max_weight": settings.max_weight or None}
    options["correct_skewness"] = correct_skewness
    return {
        "ips": off_policy.ips(log.click, log.propensity, probability, **options),
        "snips": off_policy.snips(log.click, log.propensity, probability, **options),
        "doubly_robust": off_policy.doubly_robust(
            log.click, log.propensity, log.item, probabilities, predictions, **options
        ),
    }


def own_mean(log: Log, level: float) -> PolicyValue:
    """The mean of a policy's own log, in which all weights are 1."""
    ones = np.ones_like(log.click)
    return off_policy.ips(log.click, ones, ones, level=level)


def row_of(name: str, estimator: str, result: PolicyValue, corrected: PolicyValue, own: PolicyValue) -> dict[str, Any]:
    """A row of the table, with the interval that is normal and the one that allows for skewness; rates in percent."""
    both = float(result.standard_error**2 + own.standard_error**2) ** 0.5
    return {
        "campaign": name,
        "estimator": estimator,
        "value": 100 * float(result.value),
        "low": 100 * float(result.low),
        "high": 100 * float(result.high),
        "skew low": 100 * float(corrected.low),
        "skew high": 100 * float(corrected.high),
        "own log": 100 * float(own.value),
        "holds": bool(result.low <= own.value <= result.high),
        "skew holds": bool(corrected.low <= own.value <= corrected.high),
        "apart": f"{float(result.value - own.value) / both:+.1f}",
        "ess": round(float(result.effective_sample_size)),
        "largest": f"{float(result.largest_weight):.0f}",
        "mean weight": f"{float(result.mean_weight):.2f}",
    }


def known_truth(settings: Settings) -> list[dict[str, Any]]:
    """Bias and coverage on synthetic logs: 3 positions, 50 items shown at random, click rates of 0.4 % on average."""
    n_items, rng = 50, np.random.default_rng(settings.seed)
    truth = rng.beta(1, 250, (POSITIONS, n_items))
    policy = rng.dirichlet(np.full(n_items, 0.5), POSITIONS)
    model = truth * rng.uniform(0.5, 1.5, truth.shape)
    true_value = float(np.mean(np.sum(policy * truth, axis=1)))
    tables = tuple(jnp.asarray(table, jnp.float32) for table in (truth, policy, model))
    options: dict[str, Any] = {"level": settings.level, "max_weight": settings.max_weight or None}

    def replicate(key: Array, truth: Array, policy: Array, model: Array) -> tuple[dict[str, PolicyValue], ...]:
        key_position, key_item, key_click = jax.random.split(key, 3)
        position = jax.random.randint(key_position, (settings.rows,), 0, POSITIONS)
        item = jax.random.randint(key_item, (settings.rows,), 0, n_items)
        click = jax.random.bernoulli(key_click, truth[position, item]).astype(jnp.float32)
        log = click, jnp.full(settings.rows, 1 / n_items)
        robust = item, policy[position], model[position]
        return tuple(
            {
                "ips": off_policy.ips(*log, policy[position, item], **options, correct_skewness=correct),
                "snips": off_policy.snips(*log, policy[position, item], **options, correct_skewness=correct),
                "doubly_robust": off_policy.doubly_robust(*log, *robust, **options, correct_skewness=correct),
            }
            for correct in (False, True)
        )

    def coverage(result: PolicyValue) -> float:
        low, high = np.asarray(result.low), np.asarray(result.high)
        return float(np.mean((low <= true_value) & (true_value <= high)))

    keys = jax.random.split(jax.random.key(settings.seed), settings.replications)
    # lax.map, not vmap: the tables [rows, items] of one log at a time
    results, corrected = jax.jit(lambda keys, tables: jax.lax.map(lambda key: replicate(key, *tables), keys))(
        keys, tables
    )
    out = []
    for name in ESTIMATORS:
        value, error = (np.asarray(column, np.float64) for column in results[name][:2])
        out.append(
            {
                "estimator": name,
                "true value": 100 * true_value,
                "bias": 100 * float(value.mean() - true_value),
                "+-": 200 * float(value.std(ddof=1) / np.sqrt(len(value))),
                "deviation": 100 * float(value.std(ddof=1)),
                "standard error": 100 * float(np.sqrt(np.mean(error**2))),
                "coverage": coverage(results[name]),
                "coverage, skew": coverage(corrected[name]),
            }
        )
    return out


def main(settings: Settings) -> dict[str, Any]:
    """Prints the tables; writes the JSON and the plot."""
    began, values = time.perf_counter(), dict[str, Any]()
    synthetic = known_truth(settings)
    print(f"Synthetic: {settings.replications} logs of {settings.rows} rows; click rates in percent")
    harness.table(synthetic)
    for line in synthetic:
        values |= {f"synthetic_{line['estimator']}_{name}": line[name] for name in ("bias", "coverage")}
        values[f"synthetic_{line['estimator']}_coverage_skew"] = line["coverage, skew"]

    rows: dict[str, list[dict[str, Any]]] = {"average": [], "prior": [], "random": []}
    with zipfile.ZipFile(path := wheel(settings.path)) as archive:
        print(f"Open Bandit data from {path}; click rates in percent")
        for number, campaign in enumerate(CAMPAIGNS):
            rng, key = np.random.default_rng((settings.seed, number)), jax.random.key(settings.seed + number)
            alpha, beta = read_priors(archive, campaign)
            n_items = len(alpha)
            random, bts = (read_log(archive, name, campaign) for name in ("random", "bts"))
            model = partial(predict, n_items=n_items, folds=settings.folds, shrinkage=settings.shrinkage, rng=rng)
            random_model, bts_model = model(random), model(bts)
            uniform = np.full((POSITIONS, n_items), 1 / n_items)
            for name, log, policy, predictions, own in (
                ("average", random, average_policy(bts, n_items), random_model, bts),
                ("prior", random, prior_policy(alpha, beta, key=key, draws=settings.draws), random_model, bts),
                ("random", bts, uniform, bts_model, random),
            ):
                mean = own_mean(own, settings.level)
                values[f"{name}_{campaign}_own_log"] = float(mean.value)
                corrected = estimate(log, policy, predictions, settings, correct_skewness=True)
                for each, result in estimate(log, policy, predictions, settings).items():
                    rows[name].append(row_of(campaign, each, result, corrected[each], mean))
                    figures = {field: float(getattr(result, field)) for field in ("value", "low", "high")}
                    figures |= {f"skew_{end}": float(getattr(corrected[each], end)) for end in ("low", "high")}
                    figures |= {"ess": float(result.effective_sample_size), "holds": rows[name][-1]["holds"]}
                    figures["skew_holds"] = rows[name][-1]["skew holds"]
                    values |= {f"{name}_{campaign}_{each}_{field}": figure for field, figure in figures.items()}
    print("\nBTS from the random logs, its probabilities as in its own log")
    harness.table(rows["average"], keys=2)
    print("BTS from the random logs, its probabilities simulated from its prior")
    harness.table(rows["prior"], keys=2)
    print("The other direction: the random policy from the logs of BTS")
    harness.table(rows["random"], keys=2)
    conclude(rows["average"], values)
    harness.plot("off_policy", settings, partial(draw, rows=rows["average"]))
    return harness.report("off_policy", settings, values, time.perf_counter() - began)


def conclude(rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    """Prints what the doubly robust intervals hold, and whether they would tell BTS from the random policy."""
    lines = [row for row in rows if row["estimator"] == "doubly_robust"]
    held = [row["campaign"] for row in lines if row["holds"]]
    means = [100 * values[f"random_{row['campaign']}_own_log"] for row in lines]
    vague = [row["campaign"] for row, mean in zip(lines, means, strict=True) if row["low"] <= mean <= row["high"]]
    values |= {"doubly_robust_holds": len(held), "doubly_robust_holds_random": len(vague)}
    print(f"The doubly robust interval holds the mean of BTS's own log in {len(held)} of {len(lines)} campaigns")
    print(f"({', '.join(held) or 'none'}); it also holds the random policy's own mean in {len(vague)}")
    print(f"({', '.join(vague) or 'none'}): where it does, the log is too short to tell the two apart.")


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Intervals of the estimators per campaign, and the mean of BTS's own log."""
    for number, estimator in enumerate(ESTIMATORS):
        lines = [row for row in rows if row["estimator"] == estimator]
        x, y = np.arange(len(lines)) + 0.15 * (number - 1), np.array([row["value"] for row in lines])
        span = np.abs(np.array([[row["low"] for row in lines], [row["high"] for row in lines]]) - y)
        axes.errorbar(x, y, span, fmt="o", capsize=3, label=estimator.replace("_", " "))
    own = [row["own log"] for row in rows if row["estimator"] == "ips"]
    axes.scatter(np.arange(len(own)) + 0.3, own, marker="*", s=90, color="black", label="BTS's own log")
    axes.set(xticks=np.arange(len(own)), xticklabels=CAMPAIGNS, ylabel="click rate of BTS, %")
    axes.set_ylim(bottom=0)
    axes.set_title("BTS estimated from the random policy's logs")
    axes.legend(frameon=False, loc="lower center", ncols=4)


if __name__ == "__main__":
    harness.run(main, Settings)
