"""The published tables of implicit feedback: two stages, rows that resume, protocols without leakage."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import implicit_grids, implicit_methods, published_implicit
from jaxrec import Ratings, data


def small_ratings(seed=0):
    """Ratings of 40 users and 30 films in two groups, which like each other's films little."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(40, 30)) + 2.0 * (np.arange(40)[:, None] % 2 == np.arange(30)[None, :] % 2)
    user, item = np.nonzero(score > 1.2)
    return Ratings(user, item, 3 + (score[user, item] > 1.8), 40, 30)


@pytest.fixture
def small_tables(monkeypatch, tmp_path):
    """The tables on small data, with few settings, and the choices in a temporary file."""
    ratings = small_ratings()
    held_out = np.random.default_rng(1).random(len(ratings)) < 0.2
    dataset = data.Dataset(
        "small", ratings, [f"film {i}" for i in range(30)], None, None, published={"lightgcn": held_out}
    )
    monkeypatch.setattr(data, "load", lambda name: dataset)
    monkeypatch.setattr(published_implicit, "CHOICES", tmp_path / "choices.json")
    few = {
        "popularity": [{}],
        "item_knn": [{"k": 3, "shrinkage": 0.0}, {"k": 9, "shrinkage": 0.0}],
        "rp3beta": [{"k": 5, "alpha": 0.7, "beta": 0.3}],
        "ease": [{"l2": 1.0}, {"l2": 10.0}],
        "cheby_cf": [{"order": 2, "flatness": 1.5, "rank": 3, "ideal_weight": 0.2, "degree_exponent": 0.4}],
        "ials": [{"rank": 2, "l2": 0.01, "unobserved_weight": 0.3, "sweeps": 3}],
        "closed_form": [
            {
                "order": 2,
                "flatness": 1.5,
                "rank": 3,
                "ideal_weight": 0.2,
                "degree_exponent": 0.4,
                "hop_weight": 0.1,
                "hop_user_exponent": 0.15,
            }
        ],
        "low_pass": [{"rank": 4, "hop_weight": 0.5, "hop_user_exponent": 0.15, "spectral_power": 0.0}],
        "softmax_mf": [
            {
                "rank": 4,
                "temperature": 0.2,
                "negatives_per_batch": 8,
                "batch_size": 32,
                "learning_rate": 0.05,
                "epochs": 3,
            }
        ],
        "bag_of_items": [
            {
                "rank": 4,
                "dropped": 0.3,
                "power": 0.5,
                "l2": 0.01,
                "batch_size": 16,
                "learning_rate": 0.05,
                "epochs": 5,
            }
        ],
        "blend": [{"weight": 0.5}],
        "cheby_blend": [{"weight": 0.5}],
        "ease_ials": [{"weight": 0.5}],
    }
    for name, grid in few.items():
        monkeypatch.setitem(implicit_grids.GRIDS, name, dict.fromkeys(implicit_grids.GRIDS[name], grid))
    return published_implicit.Settings(tables=("gowalla", "ml-100k-strong"), out=str(tmp_path / "out"))


def pairs(ratings):
    return set(zip(ratings.user.tolist(), ratings.item.tolist(), strict=True))


@pytest.mark.slow
def test_rows_are_chosen_on_validation_then_tested_once_and_resumed(small_tables, tmp_path, monkeypatch, capsys):
    settings = small_tables
    with pytest.raises(ValueError, match="gowalla/popularity: no settings.*--stage choose"):
        published_implicit.main(dataclasses.replace(settings, methods=("popularity",)))
    fitted = []
    method = implicit_methods.METHODS["item_knn"]

    def recorded(train, given, context):
        fitted.append(train)
        return method.fit(train, given, context)

    monkeypatch.setitem(implicit_methods.METHODS, "item_knn", dataclasses.replace(method, fit=recorded))
    choices = published_implicit.main(dataclasses.replace(settings, stage="choose"))
    ours = {name for name, method in implicit_methods.METHODS.items() if not method.is_peer}
    assert set(choices["gowalla"]) == ours - {"bag_of_items", "ease_ials"}
    assert set(choices["ml-100k-strong"]) == ours - {
        "closed_form",
        "low_pass",
        "cheby_cf",
        "softmax_mf",
        "blend",
        "cheby_blend",
    }
    assert choices["gowalla"]["item_knn"].keys() == {
        "settings",
        "validation_recall@20",
        "validation_ndcg@20",
        "settings_tried",
    }
    tested = published_implicit.TABLES["gowalla"].parts(0).test
    assert len(fitted) == 2
    assert not any(pairs(train) & pairs(tested) for train in fitted[:1])
    published_implicit.main(dataclasses.replace(settings, stage="choose"))
    assert len(fitted) == 2  # no row is chosen twice

    first = dataclasses.replace(settings, tables=("gowalla",), methods=("item_knn",))
    found = published_implicit.main(first)["metrics"]
    assert 0 < found["gowalla/item_knn/recall@20"] <= 1
    assert found["gowalla/item_knn/settings"] == choices["gowalla"]["item_knn"]["settings"]
    assert found["gowalla/item_knn/validation_ndcg@20"] == choices["gowalla"]["item_knn"]["validation_ndcg@20"]
    assert {"gowalla/item_knn/seconds", "gowalla/item_knn/ndcg@20", "gowalla/item_knn/ndcg@20_se"} < set(found)
    result = published_implicit.main(settings)
    assert len(fitted) == 4  # the row that was there is not fitted again
    assert result["metrics"]["gowalla/item_knn/seconds"] == found["gowalla/item_knn/seconds"]
    assert set(result["audit"]) == {"gowalla", "ml-100k-strong"}
    written = json.loads((tmp_path / "out" / "published_implicit.json").read_text())
    assert written["metrics"] == result["metrics"]
    shown = capsys.readouterr().out
    assert "gowalla, against the strongest baseline:" in shown
    for table in settings.tables:  # all rows of a table but the baseline itself
        compared = result["comparison"][table]
        assert len(compared["comparisons"]) == len(choices[table]) - 1
        assert implicit_methods.METHODS[compared["baseline"]].is_baseline
    assert "ChebyCF" in shown
    assert (tmp_path / "out" / "published_implicit.png").exists()


@pytest.mark.parametrize("name", ["gowalla", "ml-100k-strong"])
def test_validation_is_cut_from_train_by_the_protocol_of_test(name, small_tables):
    table = published_implicit.TABLES[name]
    parts = table.parts(0)
    for each, known in ((parts, None), (table.validation(parts.train, 0), parts.train)):
        assert not pairs(each.test) & pairs(each.given)
        assert not pairs(each.test) & pairs(each.train)
        if known is not None:
            assert (pairs(each.train) | pairs(each.given) | pairs(each.test)) <= pairs(known)
        if name.endswith("strong"):
            assert not set(each.given.user.tolist()) & set(each.train.user.tolist())


def test_one_film_of_every_user_is_held_out_among_films_that_they_do_not_have():
    train = small_ratings()
    wide = Ratings(train.user, train.item, train.value, train.n_users, 200)  # 99 negatives need a larger catalog
    parts = published_implicit._one_out(wide, 0)
    assert sorted(parts.test.user.tolist()) == sorted(set(train.user.tolist()))  # one of every user
    assert len(pairs(parts.train)) + len(pairs(parts.test)) == len(pairs(wide))
    has = pairs(wide)
    assert parts.negatives.shape == (40, 99)
    assert not any((user, item) in has for user in range(40) for item in parts.negatives[user].tolist())
    assert all(len(set(row)) == 99 for row in parts.negatives.tolist())


def test_a_scorer_by_lists_ranks_its_lists():
    scorer = implicit_methods.Lists(np.array([[3, 1], [0, 2]], np.int32), 4)
    scores = np.asarray(scorer(np.array([1, 0])))
    np.testing.assert_array_equal(scores, [[2, -np.inf, 1, -np.inf], [-np.inf, 1, -np.inf, 2]])


def test_the_committed_choices_are_points_of_their_grids():
    choices = json.loads(published_implicit.CHOICES.read_text())
    chosen = [(table, method, each["settings"]) for table, row in choices.items() for method, each in row.items()]
    assert {method for _, method, _ in chosen} <= set(implicit_grids.GRIDS) == set(implicit_methods.METHODS)
    for table, method, settings in chosen:
        assert settings in implicit_grids.GRIDS[method][table], (table, method)
