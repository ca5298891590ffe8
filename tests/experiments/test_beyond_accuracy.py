"""experiments.beyond_accuracy on tiny data with genres and sexes, and its parts."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from experiments import beyond_accuracy
from jaxrec import data, evaluation
from jaxrec.types import Dataset, Ratings

MODELS = ("popularity", "als", "implicit_als", "hybrid")
SETTINGS = beyond_accuracy.Settings(
    data="synthetic",
    split="random",
    k=5,
    liked=3.5,
    rank=2,
    l2s=(2.0,),
    l2_biases=(1.0, 300.0),
    implicit_rank=2,
    implicit_l2s=(2.0,),
    unobserved_weights=(0.3, 1.0),
    layers=(8, 4),
    steps=5,
    trade_offs=(0.0, 0.5, 1.0),
    candidates=20,
)


@pytest.fixture
def tiny(monkeypatch, one_bucket):
    """Tiny synthetic data, whose films have one or two of three genres."""
    drawn = data.synthetic.low_rank(60, 50, 1200, noise=0.5, rng=0)
    rng = np.random.default_rng(0)
    genres = [sorted(set(rng.choice(["comedy", "drama", "war"], 2).tolist())) for _ in range(50)]
    items = pl.DataFrame({"year": rng.integers(1950, 2000, 50), "genres": genres})
    users = pl.DataFrame({"age": rng.integers(18, 80, 60), "sex": rng.choice(["F", "M"], 60)})
    users = users.with_columns(occupation=pl.lit("none"), zip_code=pl.lit("10001"))
    dataset = dataclasses.replace(drawn, items=items, users=users)
    monkeypatch.setattr(data.synthetic, "low_rank", lambda *_, rng: dataset)
    return dataset


@pytest.mark.slow
def test_the_experiment_measures_all_models_and_reranks_one(tiny, tmp_path, capsys):
    returned = beyond_accuracy.main(dataclasses.replace(SETTINGS, out=str(tmp_path)))
    result = json.loads((tmp_path / "beyond_accuracy.json").read_text())
    assert returned["metrics"] == result["metrics"]
    assert result["audit"]
    assert {path.name for path in tmp_path.iterdir()} == {"beyond_accuracy.json", "beyond_accuracy.png"}
    values = result["metrics"]
    assert all(isinstance(value, int | float | bool) for value in values.values())
    for model in MODELS:
        assert 0 < values[f"{model}_ndcg_se"] < values[f"{model}_ndcg"] < 1
        assert 5 / 50 <= values[f"{model}_coverage"] <= 1
        assert 0 <= values[f"{model}_gini"] < 0.9
        assert values[f"{model}_novelty"] > 0
        assert 0 < values[f"{model}_diversity"] < 1
        assert values[f"{model}_miscalibration"] > 0
        assert 0 <= values[f"{model}_serendipity"] < 1
        assert f"{model}_ndcg_women_minus_men_se" in values
        assert f"{model}_ndcg_least_minus_most_active" in values
    # what popularity lists is expected, is its own list, and is what most users rated
    assert values["popularity_serendipity"] == 0
    assert values["popularity_rbo"] == pytest.approx(1, abs=1e-5)
    assert values["popularity_novelty"] == min(values[f"{model}_novelty"] for model in MODELS)
    difference = values["als_ndcg"] - values["popularity_ndcg"]
    assert values["als_ndcg_minus_popularity"] == pytest.approx(difference, abs=1e-6)
    # no trade-off keeps the model's own lists, and a higher one calibrates more
    for name in ("ndcg", "recall", "coverage", "miscalibration"):
        assert values[f"trade_off_0_{name}"] == values[f"implicit_als_{name}"]
    kl = [values[f"trade_off_{trade_off:g}_miscalibration"] for trade_off in SETTINGS.trade_offs]
    assert kl[0] > kl[1] > kl[2]
    shown = capsys.readouterr().out
    assert max(map(len, shown[shown.index("users\n") :].split("plot:")[0].splitlines())) <= 100
    for column in ("NDCG@5", "serendipity", "coverage", "popularity lift", "trade-off", "least, most active"):
        assert column in shown


def test_lists_have_the_accuracy_of_the_model_that_made_them():
    ratings = data.synthetic.low_rank(60, 50, 1200, noise=0.5, rng=1).ratings
    train, test = data.splits.random(ratings, test_fraction=0.2, rng=0)
    factors = beyond_accuracy._als(train, SETTINGS)(l2=2.0, l2_bias=1.0)
    expected = beyond_accuracy.accuracies(factors, train, test, SETTINGS)
    ids, filled = beyond_accuracy._ids_filled(*beyond_accuracy.top_unseen(factors, train, 5))
    lists = jnp.where(filled, ids, 50)
    scorer = lambda lists, users: beyond_accuracy.scores_of_lists(lists, users, n_items=50)
    got = beyond_accuracy.accuracies(scorer, train, test, SETTINGS, state=lists)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)


def test_scores_of_lists_rank_the_list_and_nothing_else():
    lists = jnp.array([[3, 0, 1], [2, 4, 4]])  # of four items: the second user has one only
    got = beyond_accuracy.scores_of_lists(lists, jnp.array([1, 0]), n_items=4)
    none = -np.inf
    np.testing.assert_array_equal(got, [[none, none, 3, none], [2, 1, none, 3]])


def test_the_choice_has_the_highest_ndcg_on_validation():
    ratings = Ratings([0, 1, 2], [0, 0, 1], [5.0, 5.0, 5.0], 3, 3)
    validation = Ratings([0, 1, 2], [2, 2, 0], [5.0, 5.0, 1.0], 3, 3)  # what user 2 does not like is not relevant
    score = {1: [0.0, 2.0, 1.0], 2: [0.0, 1.0, 2.0], 3: [2.0, 1.0, 0.0]}
    fit = lambda a: (jnp.ones((3, 1)), jnp.array(score[a])[:, None])
    settings = dataclasses.replace(SETTINGS, k=2)
    assert beyond_accuracy.choose(fit, {"a": (1, 2, 3)}, ratings, validation, settings) == ({"a": 2}, 1.0)


def test_groups_are_thirds_by_activity_and_the_sexes():
    train = Ratings(np.repeat(np.arange(7), [5, 1, 4, 2, 3, 9, 1]), np.arange(25) % 9, np.ones(25), 7, 9)
    users = pl.DataFrame({"sex": ["F", "M", "M", None, "F", "M", "F"]})
    where = np.array([True] * 6 + [False])  # the last user is in no group by activity
    got = beyond_accuracy.groups_of(Dataset("films", train, users=users), train, where)
    assert got[("least", "most active")].tolist() == [1, 0, 2, 0, 2, 1, 2]
    assert got[("women", "men")].tolist() == [0, 1, 1, 2, 0, 1, 0]
    assert list(beyond_accuracy.groups_of(Dataset("films", train), train, where)) == [("least", "most active")]


def test_the_difference_of_groups_has_the_error_of_two_means():
    train = Ratings(np.repeat(np.arange(6), [1, 1, 2, 2, 3, 3]), np.arange(12) % 4, np.ones(12), 6, 4)
    ndcg, lift = np.array([0.1, 0.3, 0.9, 0.9, 0.5, 0.9], np.float32), np.ones(6, np.float32)
    found = evaluation.Evaluation({"ndcg@5": ndcg, "lift@5": lift}, 6, {}, {})
    (row,) = beyond_accuracy._group_rows("a", found, Dataset("films", train), train, SETTINGS)
    assert row["difference"] == pytest.approx(0.2 - 0.7, abs=1e-6)
    assert row["s.e."] == pytest.approx(np.sqrt(0.02 / 2 + 0.08 / 2), abs=1e-6)  # variances 0.02 and 0.08 of two each
