"""Writes peers_beyond_accuracy.json: made-up lists, and what RecTools, LensKit and scikit-learn say of them.

Not run by the tests, which read the file. In an environment of its own (RecTools 0.19.0 needs NumPy 1, which the newest
pyarrow does not have):

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install rectools==0.19.0 lenskit==2025.8.1 scikit-learn==1.9.1
    /tmp/peers/bin/pip install "pyarrow==20.*"
    /tmp/peers/bin/python tests/metrics/peers_beyond_accuracy.py
"""

import json
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

N_USERS, N_ITEMS, K = 8, 12, 5


def made_up():
    """Lists of two models (the last users' are shorter), histories, relevant items, features; all drawn by a seed."""
    rng = np.random.default_rng(2024)
    length = [K] * (N_USERS - 2) + [3, 2]
    popular_first = rng.dirichlet(np.full(N_ITEMS, 0.6))
    draw = lambda n: rng.choice(N_ITEMS, n, replace=False, p=0.8 * popular_first + 0.2 / N_ITEMS).tolist()
    prediction = rng.random(60).round(3)
    return {
        "n_items": N_ITEMS,
        "lists": [draw(n) for n in length],
        "other_lists": [draw(K) for _ in range(N_USERS)],
        "history": [draw(int(rng.integers(2, 6))) for _ in range(N_USERS)],
        "relevant": [draw(int(rng.integers(1, 5))) for _ in range(N_USERS)],
        "genres": (rng.random((N_ITEMS, 4)) < 0.5).astype(int).tolist(),
        "vectors": rng.normal(size=(N_ITEMS, 3)).round(3).tolist(),
        "probability": prediction.tolist(),
        "label": (rng.random(60) < prediction**1.5).astype(int).tolist(),
    }


def rectools(data):
    import pandas as pd
    from rectools import metrics

    reco, other = (
        pd.DataFrame(
            [(j, i, r + 1) for j, row in enumerate(data[name]) for r, i in enumerate(row)],
            columns=["user_id", "item_id", "rank"],
        )
        for name in ("lists", "other_lists")
    )
    train, test = (
        pd.DataFrame([(j, i) for j, row in enumerate(data[name]) for i in row], columns=["user_id", "item_id"])
        for name in ("history", "relevant")
    )
    catalog = list(range(N_ITEMS))
    hamming = metrics.PairwiseHammingDistanceCalculator(pd.DataFrame(data["genres"]))
    per_user = {
        "MeanInvUserFreq": metrics.MeanInvUserFreq(k=K).calc_per_user(reco, train),
        "AvgRecPopularity": metrics.AvgRecPopularity(k=K).calc_per_user(reco, train),
        "Serendipity": metrics.Serendipity(k=K).calc_per_user(reco, test, train, catalog),
        "IntraListDiversity": metrics.IntraListDiversity(k=K, distance_calculator=hamming).calc_per_user(reco),
        "Intersection": metrics.Intersection(k=K).calc_per_user(reco, other),
    }
    return {name: values.sort_index().tolist() for name, values in per_user.items()} | {
        "CatalogCoverage": metrics.CatalogCoverage(k=K, normalize=True).calc(reco, catalog)
    }


def lenskit(data):
    import pandas as pd
    from lenskit.data import ItemList, ItemListCollection, from_interactions_df
    from lenskit.metrics import ListGini, MeanPopRank, RunAnalysis
    from lenskit.metrics.reranking import rank_biased_overlap

    train = pd.DataFrame([(j, i) for j, row in enumerate(data["history"]) for i in row], columns=["user_id", "item_id"])
    lists = [ItemList(item_ids=row, ordered=True) for row in data["lists"]]
    run = ItemListCollection.from_dict(dict(enumerate(lists)), "user_id")
    analysis = RunAnalysis()
    analysis.add_metric(ListGini(K, items=N_ITEMS))
    popularity = MeanPopRank(from_interactions_df(train), n=K)
    overlap = [
        rank_biased_overlap(one, ItemList(item_ids=row, ordered=True), n=max(len(one), len(row)))
        for one, row in zip(lists, data["other_lists"], strict=True)
    ]
    return {
        "ListGini": float(analysis.measure(run, run).global_metrics().iloc[0]),
        "MeanPopRank": [float(popularity.measure_list(one, one)) for one in lists],
        "item_ranks": [float(popularity.item_ranks.get(i, 0)) for i in range(N_ITEMS)],
        "rank_biased_overlap": overlap,
    }


def scikit_learn(data):
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import jaccard_score, mutual_info_score, pairwise_distances

    pairs = lambda table, row, metric: pairwise_distances(table[row], metric=metric)[np.triu_indices(len(row), 1)]
    genres, vectors = np.array(data["genres"], bool), np.array(data["vectors"])
    indicator = lambda row: np.isin(np.arange(N_ITEMS), row)
    positions = np.concatenate([np.array(row) for row in data["lists"]])
    observed, predicted = calibration_curve(data["label"], data["probability"], n_bins=5)
    return {
        "mean pairwise cosine": [float(np.mean(pairs(vectors, row, "cosine"))) for row in data["lists"]],
        "mean pairwise jaccard": [float(np.mean(pairs(genres, row, "jaccard"))) for row in data["lists"]],
        "mean pairwise hamming": [float(np.mean(pairs(genres, row, "hamming"))) for row in data["lists"]],
        "jaccard_score": [
            float(jaccard_score(indicator(a), indicator(b)))
            for a, b in zip(data["lists"], data["other_lists"], strict=True)
        ],
        "entropy": float(mutual_info_score(positions, positions)),  # the information of the items about themselves
        "calibration_curve": {"predicted": predicted.tolist(), "observed": observed.tolist()},
    }


def main():
    warnings.simplefilter("ignore")
    data = made_up()
    versions = {name: version(name) for name in ("rectools", "lenskit", "scikit-learn")}
    out = {"versions": versions, "data": data, "rectools": rectools(data), "lenskit": lenskit(data)}
    out["scikit-learn"] = scikit_learn(data)
    Path(__file__).with_suffix(".json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
