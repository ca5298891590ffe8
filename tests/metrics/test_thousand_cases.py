"""Every metric equals an oracle outside the code to 1e-6 on a thousand random cases: the ones of this file, and a list.

The metrics of ratings and labels are here, beside loops and scikit-learn; those of lists are in `test_ranking`,
`test_beyond_accuracy` and `test_calibrate`.
"""

import math

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from jaxrec import metrics
from tests.metrics import test_beyond_accuracy, test_ranking

CASES, N = 1000, 12


@pytest.fixture(scope="module")
def cases():
    """Predictions of few levels, so that many tie, ratings, labels of both classes, weights and masks, [CASES, N]."""
    rng = np.random.default_rng(31)
    prediction = (rng.integers(-8, 9, (CASES, N)) / 4).astype(np.float32)
    rating = rng.integers(1, 6, (CASES, N)).astype(np.float32)
    label = (rng.random((CASES, N)) < rng.random((CASES, 1))).astype(np.float32)
    label[:, :2] = 0, 1
    weights = rng.integers(0, 5, (CASES, N)).astype(np.float32) / 4
    where = rng.random((CASES, N)) < rng.random((CASES, 1))
    where[:, :2], weights[:, :2] = True, np.maximum(weights[:, :2], 0.25)
    return prediction, rating, label, weights, where


def mean_of(errors, weights):
    return sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)


def rmse(prediction, rating, weights):
    return math.sqrt(mean_of([(p - y) ** 2 for p, y in zip(prediction, rating, strict=True)], weights))


def mae(prediction, rating, weights):
    return mean_of([abs(p - y) for p, y in zip(prediction, rating, strict=True)], weights)


def log_loss(logit, label, weights):
    g = [1 / (1 + math.exp(-z)) for z in logit]
    losses = [-y * math.log(p) - (1 - y) * math.log(1 - p) for p, y in zip(g, label, strict=True)]
    return mean_of(losses, weights)


def auc(score, label, weights):
    """Every one against every zero; a tie counts a half."""
    entries = list(zip(score, label, weights, strict=True))
    pairs = [(a, b, u * v) for a, y, u in entries for b, z, v in entries if y == 1 and z == 0]
    return sum(w * ((a > b) + (a == b) / 2) for a, b, w in pairs) / sum(w for *_, w in pairs)


# name -> (the loops, scikit-learn's function of (target, prediction, weights))
PAIRS = {
    "rmse": (rmse, lambda y, p, w: sklearn_metrics.root_mean_squared_error(y, p, sample_weight=w)),
    "mae": (mae, lambda y, p, w: sklearn_metrics.mean_absolute_error(y, p, sample_weight=w)),
    "log_loss": (log_loss, lambda y, z, w: sklearn_metrics.log_loss(y, 1 / (1 + np.exp(-z)), sample_weight=w)),
    "auc": (auc, lambda y, z, w: sklearn_metrics.roc_auc_score(y, z, sample_weight=w)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_metrics_of_predictions_equal_loops_and_scikit_learn(name, cases):
    prediction, rating, label, weights, where = cases
    target = rating if name in ("rmse", "mae") else label
    by_loops, by_peer = PAIRS[name]
    function = getattr(metrics, name)
    run = lambda p, y, w, r: function(p, y, where=r, weights=w)
    masked = [np.where(where, column, np.nan) for column in (prediction, target)]
    got = np.asarray(jax.jit(jax.vmap(run))(*masked, weights, where))
    for n in range(CASES):
        kept = [column[n][where[n]].astype(np.float64) for column in (prediction, target, weights)]
        assert got[n] == pytest.approx(by_loops(*(column.tolist() for column in kept)), rel=1e-6, abs=1e-6), n
        if n < 100:
            assert got[n] == pytest.approx(by_peer(kept[1], kept[0], kept[2]), rel=1e-6, abs=1e-6), n
    assert len(np.unique(got)) > CASES / 4


def test_every_metric_has_its_thousand_cases():
    """A metric that is added needs a test of this kind, and a line here."""
    in_calibrate = {"calibrate", "calibration_curve", "calibration_error", "group_means"}
    listed = {name.split()[0] for name in test_beyond_accuracy.PER_LIST}
    # through intra_list_diversity, of which each is an argument
    distances = {name.split()[1] for name in test_beyond_accuracy.PER_LIST if name.startswith("intra_list_diversity")}
    tested = {*PAIRS, *test_ranking.METRICS, *listed, *distances, *test_beyond_accuracy.CATALOG, *in_calibrate}
    functions = {name for name in metrics.__all__ if callable(getattr(metrics, name)) and name.islower()}
    assert tested == functions
    assert min(test_beyond_accuracy.CASES, test_ranking.CASES, CASES) >= 1000
