"""The interviews on tiny data."""

import json

import numpy as np
import pytest

from experiments import ask
from jaxrec import data


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The experiments' synthetic data in miniature."""
    low_rank = data.synthetic.low_rank
    monkeypatch.setattr(data.synthetic, "low_rank", lambda *_, rng: low_rank(60, 50, 1200, noise=0.5, rng=rng))


def test_ask(tmp_path, capsys):
    settings = ask.Settings(
        data="synthetic", out=str(tmp_path), rank=2, sweeps=60, burn=20, folds=1, pool=12, asked=(0, 1, 5), top=2
    )
    ask.main(settings)
    result = json.loads((tmp_path / "ask.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} == {"ask.json", "ask.png"}
    metrics = result["metrics"]
    assert metrics["newcomers"] == 12
    of = {name: metrics[f"{name}_rmse_given_0"] for name in ("reduction", "reduction_rated", "popular", "random")}
    assert len({round(each, 6) for each in of.values()}) == 1  # nobody has been asked anything
    assert metrics["all_rmse_given_all"] < metrics["random_rmse_given_0"]
    assert metrics["reduction_mean_spread_given_5"] < metrics["random_mean_spread_given_5"]
    assert metrics["reduction_mean_spread_given_5"] < metrics["reduction_mean_spread_given_1"]
    assert 0.8 < metrics["random_coverage_of_95_given_5"] <= 1
    assert metrics["picks_truth_rating_given_5"] >= metrics["picks_mean_rating_given_5"]
    assert metrics["rating_share_given_0"] in settings.shares
    assert "her own ratings" in capsys.readouterr().out


def test_new_users_are_in_no_part_of_train_and_asked_about_nothing_that_is_tested():
    ratings = data.synthetic.low_rank(rng=0).ratings
    folds = ask.split(ratings, ask.Settings(folds=5, pool=1000), np.random.default_rng(0))
    for train, new in folds:
        assert train.n_users == len(np.unique(train.user)) == 60 - len(new.item)
        assert len(train) + new.where.sum() + new.there.sum() == 1200
        for user in range(len(new.item)):
            asked, test = new.item[user][new.where[user]], new.test[user][new.there[user]]
            assert not set(asked) & set(test)
    assert sum(new.there.sum() + new.where.sum() for _, new in folds) == 1200
    (_, new), *_ = ask.split(ratings, ask.Settings(folds=1, pool=3), np.random.default_rng(0))
    assert new.where.sum(axis=1).max() == 3
