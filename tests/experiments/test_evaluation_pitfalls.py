"""The pitfalls of evaluation on tiny data, and what the harness says of errors over users."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluation_pitfalls, harness
from jaxrec import data
from jaxrec.evaluation import Evaluation
from jaxrec.types import Ratings

LOW_RANK = data.synthetic.low_rank
SETTINGS = evaluation_pitfalls.Settings(
    data="synthetic", rank=2, implicit_ranks=(2,), l2=2.0, l2_bias=1.0, linear_l2=10.0, sweeps=3, negatives=4, k=3
)


def tiny(*_, rng, with_times=False):
    dataset = LOW_RANK(60, 50, 1200, noise=0.5, rng=rng)
    if not with_times:
        return dataset
    # Times in seconds of which each user has a stretch, so that most users have ratings on both sides of a moment.
    time = np.random.default_rng(rng).permutation(len(dataset.ratings))
    return dataclasses.replace(dataset, ratings=dataclasses.replace(dataset.ratings, time=time))


@pytest.mark.slow
def test_every_part_is_written_with_errors_and_comparisons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.synthetic, "low_rank", lambda *_, rng: tiny(rng=rng, with_times=True))
    evaluation_pitfalls.main(dataclasses.replace(SETTINGS, out=str(tmp_path)))
    result = json.loads((tmp_path / "evaluation_pitfalls.json").read_text())
    values = result["metrics"]
    assert (tmp_path / "evaluation_pitfalls.png").read_bytes().startswith(b"\x89PNG")
    assert set(result["audit"]) == {"last", "random", "time"}
    assert set(result["comparison"]) == {"a_sampled", "b_seen", "c_ties", "d_split", "e_leak"}
    assert all(isinstance(value, int | float) for value in values.values())
    # (a) four negatives and the film itself are five: a list of three holds it far more often
    assert values["a_popularity_4_negatives_hit_rate"] > values["a_popularity_whole_catalog_hit_rate"] + 0.2
    # (c) a constant model whose ids are sorted by popularity is popularity
    by_popularity = values["c_constant_ids_by_popularity_lowest_id_ndcg"]
    assert by_popularity == pytest.approx(values["c_popularity_lowest_id_ndcg"], abs=1e-6)
    expected = [values[f"c_constant_{ids}_expected_ndcg"] for ids in ("the_datas_ids", "ids_at_random")]
    assert expected[0] == pytest.approx(expected[1], abs=1e-6)  # numbering is nothing to the expected value
    assert values["c_als_worst_ndcg"] == pytest.approx(values["c_als_lowest_id_ndcg"], abs=1e-6)  # no ties
    assert values["c_als_whole_stars_worst_ndcg"] <= values["c_als_whole_stars_expected_ndcg"]
    # (e) means that have seen test are nearer to it
    assert values["e_item_mean_all_rmse"] < values["e_item_mean_train_rmse"]
    leak = result["comparison"]["e_leak"]["item mean"]
    squares = values["e_item_mean_all_rmse"] ** 2 - values["e_item_mean_train_rmse"] ** 2
    assert leak["difference"] == pytest.approx(squares, rel=1e-4)
    assert leak["low"] < leak["difference"] < leak["high"]
    shown = capsys.readouterr().out
    for part in ("(a) ", "(b) ", "(c) ", "(d) ", "(e) "):
        assert part in shown
    assert max(map(len, (line for line in shown.splitlines() if line.startswith("  ")))) <= 100


def test_masked_rows_fit_as_the_train_part_alone():
    ratings = tiny(rng=0).ratings
    train, _ = data.splits.random(ratings, test_fraction=0.2, rng=0)
    masked = evaluation_pitfalls.als(train, ratings, SETTINGS)
    alone = evaluation_pitfalls.als(train, train, SETTINGS)
    np.testing.assert_allclose(masked.w @ masked.x.T, alone.w @ alone.x.T, rtol=1e-3, atol=1e-4)


def test_the_linear_model_is_the_ridge_regression_of_each_film_on_the_others():
    seen = (np.random.default_rng(0).random((30, 6)) < 0.4).astype(np.float32)
    weights = evaluation_pitfalls.linear(seen, 2.0)
    for film in range(6):
        others = np.delete(np.arange(6), film)
        x = seen[:, others].astype(np.float64)
        expected = np.linalg.solve(x.T @ x + 2.0 * np.eye(5), x.T @ seen[:, film])
        np.testing.assert_allclose(weights[others, film], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.diag(weights), 0, atol=1e-6)
    cosines = evaluation_pitfalls.cosines(seen)
    both = seen[:, 0] @ seen[:, 1]
    assert cosines[0, 1] == pytest.approx(both / np.sqrt(seen[:, 0].sum() * seen[:, 1].sum()), rel=1e-5)


def test_negatives_are_films_that_the_user_never_rated():
    ratings = tiny(rng=0).ratings
    negatives = evaluation_pitfalls.sampled_negatives(ratings, SETTINGS)
    for user in range(60):
        assert len(set(negatives[user])) == 4
        assert not set(negatives[user]) & set(ratings.item[ratings.user == user])
    with pytest.raises(ValueError, match="negatives: expected at most"):
        evaluation_pitfalls.sampled_negatives(ratings, dataclasses.replace(SETTINGS, negatives=50))


def of(*values):
    return Evaluation({"ndcg@10": np.array(values, np.float32)}, len(values), {}, {})


def test_reversals_are_the_pairs_of_another_order_with_both_differences():
    up = np.tile([0.5, 0.6], 20)
    one = {"a": of(*up), "b": of(*(up - 0.2)), "c": of(*(up + 0.3))}
    other = {"a": of(*(up - 0.1)), "b": of(*up), "c": of(*(up + 0.2))}
    (found,) = evaluation_pitfalls.reversals(one, other, "ndcg@10")
    assert (found["a"], found["b"], found["shown"]) == ("a", "b", True)
    assert found["one"]["difference"] == pytest.approx(0.2, abs=1e-6)
    assert found["other"]["difference"] == pytest.approx(-0.1, abs=1e-6)
    noise = np.random.default_rng(0).permutation(np.repeat([-0.5, 0.502], 20))  # its interval holds 0
    (found,) = evaluation_pitfalls.reversals(one, {**other, "b": of(*(up - 0.1 + noise))}, "ndcg@10")
    assert not found["shown"]


def test_errors_over_users_agree_with_a_bootstrap_and_with_the_rmse():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(200), rng.integers(1, 30, 200))
    y = rng.normal(size=len(user)) + rng.normal(size=200)[user]  # errors of one user are alike
    ratings = Ratings(user, np.zeros(len(user), int), y, 201, 1)  # the last user has no ratings
    prediction = np.zeros(len(user))
    result = harness.squared_errors(prediction, ratings)
    squares = ratings.value.astype(np.float64) ** 2
    assert result.mean["squared_error"] == pytest.approx(squares.mean(), rel=1e-6)
    assert (result.n_users, np.isnan(result["squared_error"][200])) == (200, True)
    total, count = np.bincount(user, squares), np.bincount(user)
    drawn = rng.integers(0, 200, (4000, 200))
    replicates = np.sqrt(total[drawn].sum(axis=1) / count[drawn].sum(axis=1))
    assert harness.rmse_error(prediction, ratings) == pytest.approx(replicates.std(), rel=0.06)
    mean, error = harness.ratio_error(np.full(len(user), 3.0), ratings)
    assert (mean, error) == (3.0, pytest.approx(0, abs=1e-12))  # no user differs from another
    assert math.isnan(harness.rmse_error(prediction[user == 0], ratings.take(user == 0)))


def test_the_error_of_an_auc_is_0_where_all_users_are_alike_and_that_of_a_mean_otherwise():
    user = np.repeat(np.arange(40), 4)
    ratings = Ratings(user, np.tile(np.arange(4), 40), np.zeros(160), 40, 4)
    target, score = jnp.asarray(np.tile([0.0, 1.0, 0.0, 1.0], 40)), jnp.asarray(np.tile([0.1, 0.2, 0.3, 0.4], 40))
    assert harness.auc_error(score, target, ratings) == pytest.approx(0, abs=1e-6)
    # in half of the users the ones are above all zeros, in the others below: AUC of a mixture, 0.5 +- 0.08
    mixed = jnp.where(jnp.asarray(user % 2 == 0), target, -target)
    assert harness.auc_error(mixed, target, ratings) == pytest.approx(0.5 / np.sqrt(40), rel=0.2)
    assert math.isnan(harness.auc_error(score[:4], target[:4], ratings.take(user == 0)))


def test_the_best_model_is_compared_with_the_strongest_baseline(capsys):
    values = np.linspace(0.2, 0.8, 30)
    results = {name: of(*(values + shift)) for name, shift in {"p": 0.0, "q": 0.1, "m": 0.15, "n": 0.05}.items()}
    found = harness.compare(results, ("p", "q"), metric="ndcg@10")
    assert (found["model"], found["baseline"], found["lower_is_better"]) == ("m", "q", False)
    assert found["difference"] == pytest.approx(0.05, abs=1e-6)
    found = harness.compare(results, ("p", "q"), metric="ndcg@10", lower_is_better=True)
    assert (found["model"], found["baseline"]) == ("n", "p")
    assert "lower is better" in capsys.readouterr().out
    assert harness.with_error(0.5, 0.01) == "0.5000 ± 0.0100"
    assert harness.with_error(0.5, math.nan) == harness.with_error(0.5, None) == "0.5000"


def test_groups_of_users_are_compared_apart_and_a_single_user_is_not(capsys):
    rng = np.random.default_rng(0)
    results = {name: {"ndcg": rng.random(10), "recall": rng.random(10)} for name in ("model", "baseline")}
    groups = {"known": np.arange(10) < 9, "new": np.arange(10) == 9, "none": np.zeros(10, bool)}
    values = {}
    found = harness.compare_groups(results, groups, ("baseline",), "ranked", values)
    assert set(found) == {"known"}
    assert set(values) == {f"{metric}_known_{name}_se" for metric in ("ndcg", "recall") for name in results}
    known = results["model"]["ndcg"][:9]
    assert values["ndcg_known_model_se"] == pytest.approx(known.std(ddof=1) / 3)
    assert found["known"]["mean_a"] == pytest.approx(known.mean(), rel=1e-5)
    assert "ndcg, new" in capsys.readouterr().out
