"""The lists of irspack's models for users who are not in train, in an environment where irspack is installed.

    python benchmarks/irspack_lists.py JOB

JOB is a JSON file: {"split": an .npz with train_user, train_item, given_user, given_item, n_users, n_items, "model": a
name below, "settings": its arguments, "k": the length of the lists, "out": an .npy that is written}. The lists are the
ids [n_users, k] of the best items, without those that are given; users without given items have zeros. Imports NumPy,
SciPy and irspack; jax and jaxrec need not be installed. `experiments.implicit_methods` runs it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

MODELS = {
    "ease": "DenseSLIMRecommender",
    "ials": "IALSRecommender",
    "edlae": "EDLAERecommender",
    "rp3beta": "RP3betaRecommender",
}
BLOCK = 512  # users scored at once


def main(job: dict[str, Any]) -> None:
    """Fits the model to train, scores the histories that are given, and writes the lists."""
    import irspack
    import scipy.sparse as sp

    split = np.load(job["split"])
    shape = int(split["n_users"]), int(split["n_items"])
    matrix = lambda part: sp.csr_matrix(
        (np.ones(len(split[f"{part}_user"])), (split[f"{part}_user"], split[f"{part}_item"])), shape
    )
    train, given = matrix("train"), matrix("given")
    fitted = train[np.flatnonzero(np.diff(train.indptr))]  # users without anything in train are not learned from
    model = getattr(irspack, MODELS[job["model"]])(fitted, **job["settings"]).learn()
    users, k = np.flatnonzero(np.diff(given.indptr)), min(job["k"], shape[1])
    lists = np.zeros((shape[0], k), np.int32)
    for first in range(0, len(users), BLOCK):
        block = users[first : first + BLOCK]
        scores = np.asarray(model.get_score_cold_user(given[block]), np.float64)
        scores[given[block].nonzero()] = -np.inf
        lists[block] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.save(job["out"], lists)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
