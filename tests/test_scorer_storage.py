"""Every kind of scorer comes back with equal scores, bit for bit; other kinds and damaged files are errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, scorer_storage, storage
from jaxrec.models import linear as scorers
from jaxrec.models import recency
from jaxrec.solvers import linear, neighbors, sequence_ridge

rng = np.random.default_rng(0)
PAIRS = rng.permutation(12 * 9)[:50]
TRAIN = Ratings(PAIRS // 9, PAIRS % 9, np.ones(50), 12, 9)
KERNEL = recency.exponential([0.0, 0.5], window=3)
SCORERS = {
    "ease": lambda: linear.ease(TRAIN, l2=2.0, form="primal"),
    "ease, dual": lambda: linear.ease(TRAIN, l2=np.full(9, 2.0), form="dual", user_exponent=-0.5),
    "ease, low rank": lambda: linear.ease(TRAIN, l2=2.0, rank=3),
    "ridge": lambda: linear.ridge(TRAIN, l2=2.0, item_exponent=-0.5),
    "sparse": lambda: linear.sparsify(linear.ease(TRAIN, l2=2.0, form="primal"), keep=3),
    "turbo_cf": lambda: linear.turbo_cf(TRAIN),
    "cheby_cf": lambda: linear.cheby_cf(TRAIN, rank=2),
    "item_knn": lambda: neighbors.item_knn(TRAIN, k=3),
    "user_knn": lambda: neighbors.user_knn(TRAIN, k=3),
    "rp3beta": lambda: neighbors.rp3beta(TRAIN, k=3),
    "sequence_ridge": lambda: sequence_ridge(TRAIN, age_weight=KERNEL, l2=1.0, order="position"),
}


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_is_the_same_after_a_round_trip(name, tmp_path):
    scorer = SCORERS[name]()
    scorer_storage.save(tmp_path / "a.jaxrec", scorer)
    found = scorer_storage.load(tmp_path / "a.jaxrec")
    assert jax.tree.structure(found) == jax.tree.structure(scorer)
    np.testing.assert_array_equal(found(np.arange(12)), scorer(np.arange(12)))
    scorer_storage.save(tmp_path / "b.jaxrec", found)
    assert (tmp_path / "a.jaxrec").read_bytes() == (tmp_path / "b.jaxrec").read_bytes()


def test_what_is_no_scorer_is_refused(tmp_path, as_users_run):
    path = tmp_path / "a.jaxrec"
    bad = scorers.linear_scorer(TRAIN, scorers.Matrix(jnp.full((9, 9), jnp.nan)))
    for value, message in (
        (jnp.ones(3), "scorer: expected one of LinearScorer, .*, got"),
        (
            scorers.linear_scorer(TRAIN, lambda x: x),
            "scorer.operator: expected the arrays, classes.*nothing is pickled",
        ),
        (bad, "scorer.operator.weight: expected finite"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer_storage.save(path, value)
    assert not list(tmp_path.iterdir())
    scorer_storage.save(path, SCORERS["ease"]())
    with pytest.raises(ValueError, match="expected the kind 'model', got 'scorer'"):
        storage.load(path)
    storage.write(path, "scorer", {}, {"tree": {"class": "Popen", "fields": {}}})
    with pytest.raises(ValueError, match="got 'Popen'"):
        scorer_storage.load(path)
    storage.write(path, "model", {}, {})
    with pytest.raises(ValueError, match="expected the kind 'scorer', got 'model'"):
        scorer_storage.load(path)
