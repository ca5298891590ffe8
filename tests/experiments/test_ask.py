"""The interviews on tiny data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ask
from jaxrec import bayes, data
from jaxrec.bayes import new_user


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The experiments' synthetic data in miniature."""
    low_rank = data.synthetic.low_rank
    monkeypatch.setattr(data.synthetic, "low_rank", lambda *_, rng: low_rank(60, 50, 1200, noise=0.5, rng=rng))


@pytest.mark.slow
def test_ask(tmp_path, capsys, monkeypatch):
    some = {name: ask.POLICIES[name] for name in ("reduction", "random")}
    monkeypatch.setattr(ask, "POLICIES", some)  # each takes a second to compile; all of them are below
    settings = ask.Settings(
        data="synthetic", out=str(tmp_path), rank=2, sweeps=60, burn_in=20, folds=1, pool=12, asked=(0, 1, 5), top=2
    )
    ask.main(settings)
    result = json.loads((tmp_path / "ask.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} == {"ask.json", "ask.png"}
    metrics = result["metrics"]
    assert metrics["newcomers"] == 12
    of = {name: metrics[f"{name}_rmse_given_0"] for name in some}
    assert len({round(each, 5) for each in of.values()}) == 1  # nobody has been asked anything
    assert metrics["all_rmse_given_all"] < metrics["random_rmse_given_0"]
    assert metrics["reduction_mean_spread_given_5"] < metrics["random_mean_spread_given_5"]
    assert metrics["reduction_mean_spread_given_5"] < metrics["reduction_mean_spread_given_1"]
    assert 0.8 < metrics["random_coverage_of_95_given_5"] <= 1
    assert metrics["picks_the_own_ratings_rating_given_5"] >= metrics["picks_mean_rating_given_5"]
    assert metrics["rating_share"] in settings.shares
    assert "the own ratings" in capsys.readouterr().out


def test_new_users_are_in_no_part_of_train_and_asked_about_nothing_that_is_tested():
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
def test_every_policy_wishes_for_films_by_what_it_says():
    known = new_user.draws([bayes.init_chains(5, 20, 2, key=jax.random.key(0), chains=2)], mu=3.5)
    item, rated = jnp.array([3, 8, 1]), jnp.zeros(20).at[8].set(7.0)

    @jax.jit
    def wishes(answer):
        mixture = new_user.posterior(known, item[:1], answer)
        found = {name: wish(known, mixture, item, rated, jax.random.key(1)) for name, wish in ask.POLICIES.items()}
        return (
            found,
            new_user.posterior_predictive(known, mixture).variance,
            new_user.expected_variance_reduction(known, mixture, item, jnp.array([8])),
        )

    found, spread, of_8 = wishes(jnp.array([4.0]))
    assert all(wish.shape == (3,) and bool(jnp.isfinite(wish).all()) for wish in found.values())
    assert list(found["popular"]) == [0, 7, 0]
    np.testing.assert_allclose(found["spread"], spread[item], rtol=1e-5)
    np.testing.assert_allclose(found["reduction, rated"], 7 * of_8, rtol=1e-5)  # the only film that anybody rated
    assert bool(jnp.all(found["reduction"] > of_8))
