"""The experiment that chooses which items to ask a new user about, on tiny data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ask, harness
from jaxrec import bayes, data
from jaxrec.bayes import new_user


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Replaces the synthetic data of the experiments by tiny data."""
    low_rank = data.synthetic.low_rank
    monkeypatch.setattr(data.synthetic, "low_rank", lambda *_, rng: low_rank(60, 50, 1200, noise=0.5, rng=rng))


@pytest.mark.slow
def test_ask_writes_its_results_and_reducing_variance_beats_random_items(tmp_path, capsys, monkeypatch):
    policies = {name: ask.POLICIES[name] for name in ("reduction", "random")}
    monkeypatch.setattr(ask, "POLICIES", policies)  # each takes a second to compile; the test below runs all of them
    settings = ask.Settings(
        data="synthetic", out=str(tmp_path), rank=2, sweeps=60, burn_in=20, folds=1, pool=12, asked=(0, 1, 5), top=2
    )
    ask.main(settings)
    result = json.loads((tmp_path / "ask.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} == {"ask.json", "ask.png"}
    metrics = result["metrics"]
    assert metrics["newcomers"] == 12
    rmse = {name: metrics[f"{name}_rmse_given_0"] for name in policies}
    assert len({round(each, 5) for each in rmse.values()}) == 1  # before the first answer all policies are equal
    assert metrics["all_rmse_given_all"] < metrics["random_rmse_given_0"]
    assert metrics["reduction_mean_spread_given_5"] < metrics["random_mean_spread_given_5"]
    assert metrics["reduction_mean_spread_given_5"] < metrics["reduction_mean_spread_given_1"]
    assert 0.8 < metrics["random_coverage_of_95_given_5"] <= 1
    assert metrics["picks_the_own_ratings_rating_given_5"] >= metrics["picks_mean_rating_given_5"]
    assert metrics["rating_share"] in settings.shares
    for n in (1, 5):  # the policy against random questions, by squared errors of the same users
        found = result["comparison"][f"given_{n}"]
        assert (found["model"], found["baseline"], found["n_users"]) == ("reduction", "random", 12)
        expected = metrics[f"reduction_rmse_given_{n}"] ** 2 - metrics[f"random_rmse_given_{n}"] ** 2
        assert found["difference"] == pytest.approx(expected, abs=1e-5)
    assert "the own ratings" in capsys.readouterr().out


def test_new_users_are_not_in_train_and_their_answers_are_not_in_test():
    ratings = data.synthetic.low_rank(rng=0).ratings
    folds = ask.split(ratings, ask.Settings(folds=5, pool=1000), np.random.default_rng(0))
    for train, new in folds:
        assert train.n_users == len(np.unique(train.user)) == 60 - len(new.item)
        assert len(train) + new.where.sum() + new.test_where.sum() == 1200
        for user in range(len(new.item)):
            asked, test = new.item[user][new.where[user]], new.test_item[user][new.test_where[user]]
            assert not set(asked) & set(test)
    assert sum(new.test_where.sum() + new.where.sum() for _, new in folds) == 1200
    (_, new), *_ = ask.split(ratings, ask.Settings(folds=1, pool=3), np.random.default_rng(0))
    assert new.where.sum(axis=1).max() == 3


@pytest.mark.slow
def test_every_policy_scores_films_by_its_own_criterion():
    known = new_user.draws([bayes.init_chains(5, 20, 2, key=jax.random.key(0), chains=2)], mu=3.5)
    item, rated = jnp.array([3, 8, 1]), jnp.zeros(20).at[8].set(7.0)

    @jax.jit
    def policy_scores(answer):
        mixture = new_user.posterior(known, item[:1], answer)
        found = {name: score(known, mixture, item, rated, jax.random.key(1)) for name, score in ask.POLICIES.items()}
        return (
            found,
            new_user.posterior_predictive(known, mixture).variance,
            new_user.expected_variance_reduction(known, mixture, item, jnp.array([8])),
        )

    found, variance, reduction_by_8 = policy_scores(jnp.array([4.0]))
    assert all(score.shape == (3,) and bool(jnp.isfinite(score).all()) for score in found.values())
    assert list(found["popular"]) == [0, 7, 0]
    np.testing.assert_allclose(found["spread"], variance[item], rtol=1e-5)
    np.testing.assert_allclose(
        found["reduction, rated"], 7 * reduction_by_8, rtol=1e-5
    )  # the only film that has ratings
    assert bool(jnp.all(found["reduction"] > reduction_by_8))


def test_errors_of_the_measures_are_those_of_ratios_over_users():
    rng = np.random.default_rng(0)
    where = rng.random((20, 6)) < 0.7
    where[:, 0] = True
    new = ask.NewUsers(None, None, None, None, rng.normal(3, 1, (20, 6)), where)
    shape = (20, 3, 6)  # users, after 0, 1 and 2 answers, test films
    numbers = (
        rng.normal(3, 1, shape),
        rng.uniform(0.1, 1, shape),
        rng.uniform(0.1, 1, shape),
        rng.uniform(5, 9, (20, 3)),
    )
    found = ask.measure(ask.Predictions(*numbers), new, (1.0, 5.0), ask.Settings(asked=(0, 2)))
    user, film = np.nonzero(where)
    ratings = data.Ratings(user, film, new.test_value[where], 20, 6)
    prediction = np.clip(numbers[0][:, 2], 1, 5)[where]
    assert found["RMSE"][2][0] == pytest.approx(np.sqrt(np.mean((prediction - new.test_value[where]) ** 2)), rel=1e-6)
    assert found["RMSE"][2][1] == pytest.approx(harness.rmse_error(prediction, ratings), rel=1e-5)
    assert found["mean spread"][0] == pytest.approx(harness.ratio_error(numbers[1][:, 0][where], ratings), rel=1e-6)
    assert found["draws that count"][2] == pytest.approx(harness.mean_and_error(numbers[3][:, 2]))
