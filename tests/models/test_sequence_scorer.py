"""The scorer of sequence models: users, requests, ensembles, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, evaluation
from jaxrec.models import sequence_scorer
from jaxrec.models.sequence_scorer import ensemble_vectors
from tests.models.test_sequence import MODELS, N_ITEMS, PACKED, RATINGS, SEQUENCES, WINDOW, params_of, vectors_of

SIMPLE = {name: MODELS[name] for name in ("learned", "rotary", "gru")}
each_model = pytest.mark.parametrize("model", SIMPLE.values(), ids=SIMPLE.keys())


def scorer_of(model, seed=0, packed=PACKED):
    return sequence_scorer.sequence_scorer(model, params_of(model, seed), packed)


@each_model
def test_users_score_as_their_last_events_alone(model):
    scorer = scorer_of(model)
    got = scorer(jnp.arange(len(SEQUENCES)))
    for j, items in enumerate(SEQUENCES):
        last = items[-WINDOW:]
        if not last:
            assert not got[j].any()
            continue
        item = jnp.array([last], jnp.int32)
        h = vectors_of(model)(scorer.params, item, jnp.ones_like(item), jnp.arange(len(last))[None])
        np.testing.assert_allclose(got[j], scorer.items @ h[0, -1], rtol=1e-4, atol=1e-5)
    assert scorer.dropped.tolist() == [0, 0, 0, 0, 2]


@each_model
def test_requests_equal_users_and_an_empty_one_scores_0(model):
    scorer = scorer_of(model)
    items = np.zeros((len(SEQUENCES), 9), np.int32)
    where = np.zeros(items.shape, bool)
    for j, one in enumerate(SEQUENCES):  # padding at random places
        places = np.sort(np.random.default_rng(j).permutation(9)[: len(one)])
        items[j, places], where[j, places] = one, True
    expected = scorer(jnp.arange(len(SEQUENCES)))
    np.testing.assert_allclose(scorer.scores(items, where=where), expected, rtol=1e-4, atol=1e-5)
    assert scorer.scores(np.zeros((2, 0), np.int32)).tolist() == [[0.0] * N_ITEMS] * 2


def test_blocks_of_rows_give_the_same_vectors(monkeypatch):
    model = MODELS["learned"]
    expected = scorer_of(model).users
    monkeypatch.setattr(sequence_scorer, "ROWS_PER_CALL", 2)  # 3 rows: the last block begins early
    jax.clear_caches()
    np.testing.assert_allclose(scorer_of(model).users, expected, rtol=1e-5, atol=1e-6)


def test_an_ensemble_is_the_mean_of_the_scores():
    scorers = [scorer_of(MODELS["learned"], seed) for seed in range(3)]
    vectors = ensemble_vectors(scorers)
    users = jnp.arange(len(SEQUENCES))
    mean = sum(scorer(users) for scorer in scorers) / 3
    np.testing.assert_allclose(vectors.users @ vectors.items.T, mean, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="scorers: expected one or more"):
        ensemble_vectors([])


def test_evaluate_takes_it_with_an_item_met_first_in_test():
    scorer = scorer_of(MODELS["learned"])
    test = Ratings([0, 3], [6, 2], [1.0, 1.0], len(SEQUENCES), N_ITEMS)
    found = evaluation.evaluate(scorer, RATINGS, test, k=3, metrics=("hit_rate",))
    assert found.n_users == 2
    vectors = evaluation.evaluate(tuple(scorer.vectors), RATINGS, test, k=3, metrics=("hit_rate",))
    np.testing.assert_array_equal(found.per_user["hit_rate@3"], vectors.per_user["hit_rate@3"])


def test_bad_input():
    model = MODELS["learned"]
    scorer = scorer_of(model)
    with pytest.raises(ValueError, match="users"):
        scorer(jnp.array([len(SEQUENCES)]))
    with pytest.raises(ValueError, match="items"):
        scorer.scores(jnp.array([[N_ITEMS]]))
    with pytest.raises(ValueError, match="packed: expected rows of at most the model's window"):
        scorer_of(model, packed=data.sequences(RATINGS, length=WINDOW + 1))
    with pytest.raises(ValueError, match=f"expected events of the model's {N_ITEMS} items, got 8"):
        scorer_of(model, packed=data.sequences(Ratings([0], [7], [1.0], 1, 8, time=[0]), length=2))
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, scorer.params)
    with pytest.raises(ValueError, match="params: expected finite vectors"):
        sequence_scorer.sequence_scorer(model, broken, PACKED)


@pytest.mark.usefixtures("as_users_run")
def test_a_second_identical_call_compiles_nothing(compilations):
    def run():
        scorer = scorer_of(MODELS["learned"])
        return scorer(np.arange(3)), scorer.scores(np.array([[1, 2, 3]])), tuple(ensemble_vectors([scorer, scorer]))

    jax.block_until_ready(run())
    before = compilations()
    jax.block_until_ready(run())
    assert compilations() == before
