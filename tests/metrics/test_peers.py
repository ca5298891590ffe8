"""The metrics beyond accuracy equal RecTools, LensKit and scikit-learn where they define the same.

The lists and the peers' figures are in peers_beyond_accuracy.json, written by peers_beyond_accuracy.py. Where the
definitions differ, a test says by what.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import metrics

PEERS = json.loads(Path(__file__).with_name("peers_beyond_accuracy.json").read_text())
DATA, RECTOOLS, LENSKIT, SKLEARN = (PEERS[name] for name in ("data", "rectools", "lenskit", "scikit-learn"))
N_ITEMS, N_USERS = DATA["n_items"], len(DATA["lists"])


def padded(rows):
    """Lists of ids as an array and its mask; the padding has an id that is no item."""
    length = max(map(len, rows))
    ids = np.array([[*row, *[99] * (length - len(row))] for row in rows])
    return ids, ids != 99


IDS, FILLED = padded(DATA["lists"])
OTHERS, OTHERS_WHERE = padded(DATA["other_lists"])
RELEVANT, RELEVANT_WHERE = padded(DATA["relevant"])
COUNTS = np.bincount(np.concatenate(DATA["history"]), minlength=N_ITEMS)


def dense_ranks():
    """RecTools' ranks by popularity: 1 for the largest count, and so on; n_items + 1 for items without interactions."""
    distinct = sorted(set(COUNTS[COUNTS > 0].tolist()), reverse=True)
    return np.array([distinct.index(count) + 1 if count else N_ITEMS + 1 for count in COUNTS.tolist()])


def diversity(table, distance):
    return metrics.intra_list_diversity(IDS, np.array(DATA[table]), distance=distance, filled=FILLED)


def curve():
    return metrics.calibration_curve(
        np.array(DATA["probability"]), np.array(DATA["label"]), np.linspace(0, 1, 6), weights=None
    )


SAME = {
    "RecTools' MeanInvUserFreq": (
        lambda: metrics.self_information(IDS, COUNTS, n_users=N_USERS, filled=FILLED),
        RECTOOLS["MeanInvUserFreq"],
    ),
    "RecTools' AvgRecPopularity": (
        lambda: metrics.mean_popularity(IDS, COUNTS, filled=FILLED),
        RECTOOLS["AvgRecPopularity"],
    ),
    "RecTools' Serendipity": (
        lambda: metrics.rank_serendipity(IDS, RELEVANT, dense_ranks(), where=RELEVANT_WHERE, filled=FILLED),
        RECTOOLS["Serendipity"],
    ),
    "RecTools' IntraListDiversity": (
        lambda: diversity("genres", metrics.hamming_distance),
        RECTOOLS["IntraListDiversity"],
    ),
    "RecTools' Intersection": (
        lambda: metrics.overlap(IDS, OTHERS, where=OTHERS_WHERE, filled=FILLED),
        RECTOOLS["Intersection"],
    ),
    "RecTools' CatalogCoverage": (
        lambda: metrics.catalog_coverage(IDS, n_items=N_ITEMS, filled=FILLED),
        RECTOOLS["CatalogCoverage"],
    ),
    "LensKit's ListGini": (
        lambda: metrics.exposure_gini(IDS, n_items=N_ITEMS, filled=FILLED),
        LENSKIT["ListGini"],
    ),
    "LensKit's MeanPopRank, with its quantiles as popularity": (
        lambda: metrics.mean_popularity(IDS, np.array(LENSKIT["item_ranks"]), filled=FILLED),
        LENSKIT["MeanPopRank"],
    ),
    "LensKit's rank_biased_overlap": (
        lambda: metrics.rank_biased_overlap(IDS, OTHERS, p=0.85, tail="normalize", where=OTHERS_WHERE, filled=FILLED),
        LENSKIT["rank_biased_overlap"],
    ),
    "scikit-learn's cosine distance": (
        lambda: diversity("vectors", metrics.cosine_distance),
        SKLEARN["mean pairwise cosine"],
    ),
    "scikit-learn's jaccard distance": (
        lambda: diversity("genres", metrics.jaccard_distance),
        SKLEARN["mean pairwise jaccard"],
    ),
    "scikit-learn's hamming distance, times the features": (
        lambda: diversity("genres", metrics.hamming_distance) / len(DATA["genres"][0]),
        SKLEARN["mean pairwise hamming"],
    ),
    "scikit-learn's jaccard_score": (
        lambda: metrics.jaccard(IDS, OTHERS, where=OTHERS_WHERE, filled=FILLED),
        SKLEARN["jaccard_score"],
    ),
    "scikit-learn's entropy in nats": (
        lambda: metrics.exposure_entropy(IDS, n_items=N_ITEMS, filled=FILLED),
        SKLEARN["entropy"],
    ),
    "scikit-learn's calibration_curve, predicted": (
        lambda: curve().prediction,
        SKLEARN["calibration_curve"]["predicted"],
    ),
    "scikit-learn's calibration_curve, observed": (
        lambda: curve().target,
        SKLEARN["calibration_curve"]["observed"],
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_metrics_equal_the_peers(name):
    got, expected = SAME[name]
    np.testing.assert_allclose(got(), expected, rtol=1e-6, atol=1e-6)


def test_the_lists_are_worth_comparing():
    """Lists of several lengths, cold items, users without hits: or the equalities would show little."""
    assert (COUNTS[np.unique(IDS[FILLED])] == 0).any()
    assert not FILLED.all()
    for figures in (*RECTOOLS.values(), *LENSKIT.values()):
        assert np.size(figures) == 1 or len(set(figures)) > 2


# Where RecTools defines a number and we do not


def test_an_undefined_value_is_nan_where_rectools_has_0():
    one = {"ids": jnp.array([1, 2]), "filled": jnp.array([True, False])}
    assert np.isnan(metrics.intra_list_diversity(one["ids"], jnp.eye(3), filled=one["filled"]))
    nothing = {"where": jnp.array([False])}
    assert np.isnan(metrics.rank_serendipity(one["ids"], jnp.array([1]), jnp.array([1, 2, 3]), **nothing))
