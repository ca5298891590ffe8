"""The main of every experiment runs on tiny data and writes its results; the command line refuses unknown settings."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    als,
    binary_labels,
    cold_start,
    films,
    fold_in,
    gibbs,
    gradient_descent,
    grid_search,
    harness,
    hybrid,
    item_features,
    mean_normalization,
    published,
    quickstart,
    ranking_head,
    retrieve_and_rank,
    user_ridge,
)
from jaxrec import data, evaluation
from jaxrec.bayes import _gibbs
from jaxrec.models import baselines

TINY = {"data": "synthetic", "split": "random"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch, one_bucket):
    """Replaces the synthetic data of the experiments by tiny data."""
    low_rank = data.synthetic.low_rank
    monkeypatch.setattr(data.synthetic, "low_rank", lambda *_, rng: low_rank(60, 50, 1200, noise=0.5, rng=rng))


def read(out, name):
    result = json.loads((out / f"{name}.json").read_text())
    assert set(result) == {"experiment", "settings", "audit", "metrics", "comparison", "seconds", "environment"}
    assert result["experiment"] == name
    assert result["audit"], "every experiment audits its split"
    assert all(isinstance(v, int | float | bool) for v in result["metrics"].values())
    assert {p.name for p in out.iterdir()} == {f"{name}.json", f"{name}.png"}  # no temporary files are left
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return result


def test_quickstart_writes_and_prints_its_results(tmp_path, capsys):
    returned = quickstart.main(quickstart.Settings(**TINY, out=str(tmp_path), rank=2, l2=3.0, film="Film 1", user=3))
    result = read(tmp_path, "quickstart")
    assert returned["metrics"] == result["metrics"]
    assert 0.5 * 0.9 < result["metrics"]["test_rmse"] < result["metrics"]["global_mean_test_rmse"]
    shown = capsys.readouterr().out
    listed = shown.split("and the best predictions for the others:\n")[1].split("\n\n")[0].splitlines()
    dataset = data.synthetic.low_rank(rng=0)
    train, _ = data.splits.random(dataset.ratings, test_fraction=0.2, rng=0)
    seen = set(dataset.titles[train.item[train.user == 2]])
    assert len(listed) == 10
    assert not {line.split(maxsplit=1)[1] for line in listed} & seen
    for line in ("ALS, rank 2", "damped biases", "Related to Film 1", "User 3 rated", "The noise alone is 0.5"):
        assert line in shown


def test_quickstart_without_real_ratings_says_so_and_runs_on_synthetic_ones(tmp_path, capsys, monkeypatch):
    def not_found(name, *, path):
        raise data.DatasetNotFound("the list of all ways")

    monkeypatch.setattr(data, "load", not_found)
    result = quickstart.main(quickstart.Settings(out=str(tmp_path), user=3, rank=2))
    shown = capsys.readouterr().out
    assert "SYNTHETIC" in shown
    assert "the list of all ways" in shown
    assert result["settings"]["data"] == "synthetic"


def test_quickstart_refuses_an_unknown_film_or_user(tmp_path):
    with pytest.raises(ValueError, match="no title contains 'Nosuch'"):
        quickstart.main(quickstart.Settings(**TINY, out=str(tmp_path), film="Nosuch", user=3))
    with pytest.raises(ValueError, match="user: 999 is not among the 60"):
        quickstart.main(quickstart.Settings(**TINY, out=str(tmp_path), film="Film 1", user=999))


@pytest.mark.slow
def test_als_chooses_on_validation_and_reads_the_test_part_once(tmp_path, monkeypatch):
    calls = []
    errors = harness.errors
    monkeypatch.setattr(harness, "errors", lambda f, r, scale: calls.append(len(r)) or errors(f, r, scale))
    als.main(als.Settings(**TINY, out=str(tmp_path), ranks=(1, 2), l2s=(1.0, 3.0), l2_biases=(1.0,), sweeps=5))
    metrics = read(tmp_path, "als")["metrics"]
    validation, test = round(0.1 * (1200 - 240)), 240
    assert calls == [validation] * 4 + [test, test]  # the grid on validation, then the choice and the baseline on test
    assert metrics["rank"] in (1, 2)
    assert metrics["l2"] in (1.0, 3.0)
    assert metrics["test_rmse"] < metrics["damped_biases_test_rmse"] * 1.2


@pytest.mark.slow
def test_gradient_descent_and_adam_reach_the_same_cost(tmp_path):
    settings = gradient_descent.Settings(
        **TINY, out=str(tmp_path), rank=2, l2s=(1.0, 3.0), adam_iterations=40, descent_iterations=400, descent_rate=0.01
    )
    gradient_descent.main(settings)
    metrics = read(tmp_path, "gradient_descent")["metrics"]
    assert metrics["adam_iterations"] == 40
    assert metrics["adam_cost"] == pytest.approx(metrics["gradient_descent_cost"], rel=0.1)  # both minimize the same J
    assert metrics["test_rmse"] == metrics["adam_test_rmse"]


@pytest.mark.slow
def test_user_ridge_finds_the_l2_of_the_lowest_leave_one_out_error(tmp_path):
    settings = user_ridge.Settings(**TINY, out=str(tmp_path), l2s=(0.1, 0.3, 1.0, 3.0, 10.0), steps=150, start=30.0)
    user_ridge.main(settings)
    metrics = read(tmp_path, "user_ridge")["metrics"]
    dataset = data.synthetic.low_rank(rng=0)
    train, _ = data.splits.random(dataset.ratings, test_fraction=0.2, rng=0)
    factors, rows = user_ridge.model(train, user_ridge.features(dataset)), data.rows(train, "user", bucket_growth=2.0)
    curve = [user_ridge._leave_one_out_rmse(rows, factors, l2, settings) for l2 in np.geomspace(0.05, 50, 25)]
    assert metrics["leave_one_out_rmse"] <= min(curve) + 1e-3
    assert metrics["test_rmse"] < metrics["item_mean_test_rmse"]


def test_user_ridge_uses_genres_and_decades_as_features():
    import polars as pl

    items = pl.DataFrame({"genres": [["a", "b"], ["b"], []], "year": [1994, 1999, None]})
    x = user_ridge.features(data.Dataset("films", data.Ratings([0], [0], [1.0], 1, 3), items=items))
    np.testing.assert_allclose(
        x, [[2 / 3, 1 / 3, -1 / 3, 1 / 3], [-1 / 3, 1 / 3, -1 / 3, 1 / 3], [-1 / 3, -2 / 3, 2 / 3, -2 / 3]], atol=1e-6
    )
    with pytest.raises(ValueError, match="whose films have genres, got 'none'"):
        user_ridge.features(data.Dataset("none", data.Ratings([0], [0], [1.0], 1, 3)))


@pytest.mark.slow
def test_item_features_predicts_better_from_more_ratings(tmp_path):
    settings = item_features.Settings(**TINY, out=str(tmp_path), rank=2, l2=2.0, given=(1, 10), at_least=20, sweeps=5)
    item_features.main(settings)
    metrics = read(tmp_path, "item_features")["metrics"]
    assert metrics["rmse_given_10"] < metrics["rmse_given_1"]
    assert metrics["descent_steps"] < settings.iterations
    assert 0 <= metrics["descent_apart"] <= 1e-4
    with pytest.raises(ValueError, match="no two films have 999 ratings"):
        item_features.main(dataclasses.replace(settings, at_least=999))


@pytest.mark.slow
def test_fold_in_comes_near_the_error_of_retraining(tmp_path):
    fold_in.main(fold_in.Settings(**TINY, out=str(tmp_path), rank=2, l2=2.0, given=(0, 10), sweeps=5))
    metrics = read(tmp_path, "fold_in")["metrics"]
    assert metrics["rmse_given_10"] < metrics["rmse_given_0"]
    assert metrics["rmse_given_10"] == pytest.approx(metrics["trained_again_rmse_given_10"], rel=0.05)


@pytest.mark.slow
def test_mean_normalization_predicts_the_mean_for_new_users(tmp_path):
    settings = mean_normalization.Settings(
        **TINY, out=str(tmp_path), rank=2, l2s=(2.0,), descent_rate=0.01, descent_iterations=60, goals=(1.2,)
    )
    mean_normalization.main(settings)
    metrics = read(tmp_path, "mean_normalization")["metrics"]
    assert metrics["newcomer_film_away_from_mu"] < 1e-3
    assert metrics["newcomer_none_away_from_mu"] > 2  # the prediction is 0
    assert 0 < metrics["adam_film_steps_to_1.2"] < metrics["adam_none_steps_to_1.2"]


@pytest.mark.slow
def test_binary_labels_are_predicted_better_than_by_the_base_rate(tmp_path):
    settings = binary_labels.Settings(**TINY, out=str(tmp_path), rank=2, l2s=(2.0,), l2_biases=(0.5,), iterations=60)
    binary_labels.main(settings)
    metrics = read(tmp_path, "binary_labels")["metrics"]
    for reading in ("liked", "clicked"):
        assert metrics[f"{reading}_base_rate_test_auc"] == 0.5
        assert metrics[f"{reading}_factors_test_log_loss"] < metrics[f"{reading}_base_rate_test_log_loss"]
        assert 0.55 < metrics[f"{reading}_factors_test_auc"] <= 1


def test_clicks_are_the_ratings_and_their_zeros_are_unrated_pairs():
    dataset = data.synthetic.low_rank(rng=0)
    parts = data.splits.random(dataset.ratings, test_fraction=0.2, rng=0)
    train, test = binary_labels._clicked(dataset.ratings, *parts, binary_labels.Settings(zeros_per_click=1))
    pairs = lambda r: set(zip(r.user.tolist(), r.item.tolist(), strict=True))
    zeros = pairs(train.take(train.value == 0)) | pairs(test.take(test.value == 0))
    assert pairs(train.take(train.value == 1)) == pairs(parts[0])
    assert pairs(test.take(test.value == 1)) == pairs(parts[1])
    assert not zeros & pairs(dataset.ratings)
    assert len(zeros) == len(train) + len(test) - len(dataset.ratings)


@pytest.mark.slow
def test_grid_search_computes_every_member_of_the_grids(tmp_path):
    settings = grid_search.Settings(
        **TINY,
        out=str(tmp_path),
        rank=2,
        folds=2,
        als_l2s=(1.0, 3.0),
        als_l2_biases=(1.0,),
        sweeps=3,
        steps=10,
        batch_size=3,
    )
    grid_search.main(settings)
    metrics = read(tmp_path, "grid_search")["metrics"]
    assert (metrics["als_members"], metrics["adam_members"]) == (2 * 2 * 2, 2 * 2 * 2 * 2 * 2)
    assert metrics["als_at_once_differs_by"] < 1e-4
    assert metrics["als_l2"] in (1.0, 3.0)
    assert metrics["adam_rate"] in settings.rates


@pytest.mark.slow
def test_the_fold_of_a_grid_member_is_its_validation_part():
    """A member of fold 1 is ALS on the other folds, with the error on fold 1, as computed without masks."""
    import jax
    from jax import numpy as jnp

    from jaxrec import models, solvers

    ratings = data.synthetic.low_rank(rng=0).ratings
    fold = np.arange(len(ratings)) % 3
    tagged = dataclasses.replace(ratings, weights=fold)
    settings = grid_search.Settings(rank=2, sweeps=4)
    member = {"l2": jnp.array(2.0), "l2_bias": jnp.array(1.0), "seed": jnp.array(5), "fold": jnp.array(1.0)}
    sides = data.rows(tagged, "user"), data.rows(tagged, "item")
    factors, error = jax.jit(lambda m, *a: grid_search.als(m, *a, jnp.array(3.5), None, settings=settings))(
        member, *sides
    )
    part, held_out = ratings.take(fold != 1), ratings.take(fold == 1)
    init = models.init(60, 50, 2, key=jax.random.key(5), mu=3.5)
    plain, _ = solvers.als(
        (data.rows(part, "user"), data.rows(part, "item")),
        init=init,
        l2=2.0,
        l2_bias=1.0,
        sweeps=4,
        tol=-1.0,
        progress=False,
    )
    np.testing.assert_allclose(factors.w, plain.w, rtol=1e-3, atol=1e-4)
    assert float(error) == pytest.approx(harness.errors(plain, held_out, None)["rmse"], rel=1e-4)


def test_the_choice_has_the_lowest_mean_error_and_is_never_nan():
    members = {"l2": np.array([1.0, 1.0, 3.0, 3.0, 9.0, 9.0]), "seed": np.array([0, 1] * 3)}
    errors = np.array([0.9, 1.3, 1.0, 1.0, 0.1, np.nan])
    assert grid_search.choose(members, errors, ("l2",)) == ({"l2": 3.0}, 1.0)


@pytest.fixture
def small_ml_100k(monkeypatch, tmp_path):
    """The published tables on synthetic ratings named ml-100k, with the choices in a temporary file."""
    drawn = data.synthetic.low_rank(rng=0)
    fifth = np.arange(len(drawn.ratings)) * 5 // len(drawn.ratings)
    masks = {f"u{k + 1}": fifth == k for k in range(5)}
    dataset = dataclasses.replace(drawn, name="ml-100k", published=masks, scale=(1.0, 5.0))
    monkeypatch.setattr(data, "load", lambda name: dataset)
    monkeypatch.setattr(published, "CHOICES", tmp_path / "choices.json")
    biases = (
        published.models.baselines.damped_biases
    )  # instead of ALS, which would be compiled for each of the ten folds
    monkeypatch.setattr(published, "fit", lambda train, choice, *_: biases(train, damping=choice["l2"]))
    # The sampler has its own tests: here it only returns a choice by validation, and predictions of two chains.
    tried = {"none": {(1, 20): 0.9, (2, 20): 0.8}, "rated": {(1, 20): 0.7, (2, 20): 0.75}}
    found = {name: (errors, min(errors, key=errors.get)) for name, errors in tried.items()}
    monkeypatch.setattr(published.gibbs, "choose", lambda train, dataset, name, settings: found[name])

    def sample(train, test, dataset, name, rank, sweeps, settings, *, chains):
        assert (name, rank, sweeps, chains) == ("rated", 1, 20, 2)
        mean = jnp.full((2, len(test)), jnp.array([[3.0], [4.0]]))
        return published.bayes.Posterior(jnp.full(2, 9.0), mean, mean, mean, mean), None

    monkeypatch.setattr(published.gibbs, "sample", sample)
    chains = published.Chains(tuple(tried), (1, 2), 2, (20,))
    monkeypatch.setattr(published, "SAMPLERS", {"ml-100k 5-fold": chains})
    grid = {"ranks": (1,), "l2s": (2.0, 5.0), "exponents": (0.0,), "sweeps": 3}
    return published.Settings(tables=("ml-100k u1-u5", "ml-100k 5-fold"), out=str(tmp_path / "out"), **grid)


@pytest.mark.slow
def test_published_chooses_without_the_test_part_then_reads_it_once_and_resumes(
    small_ml_100k, tmp_path, monkeypatch, capsys
):
    settings = small_ml_100k
    with pytest.raises(ValueError, match="ml-100k u1, ALS: no settings chosen.*--stage choose"):
        published.main(settings)
    calls, fitted = [], []
    choose, fit = published.METHODS["ALS"]
    record_and_choose = lambda train, *rest: calls.append(train) or choose(train, *rest)
    monkeypatch.setitem(published.METHODS, "ALS", (record_and_choose, fit))
    choices = published.main(dataclasses.replace(settings, stage="choose"))
    assert len(choices) == len(calls) == 10
    assert choices["ml-100k 5-fold 3"]["Gibbs"] == {"model": "rated", "rank": 1, "sweeps": 20, "validation_rmse": 0.7}
    assert "Gibbs" not in choices["ml-100k u1"]  # this table has no sampler
    folds = {name: (train, test) for table in settings.tables for name, _, train, test in published.folds(table, 0)}
    pairs = lambda r: set(zip(r.user.tolist(), r.item.tolist(), strict=True))
    for (_, test), train in zip(folds.values(), calls, strict=True):
        assert not pairs(train) & pairs(test)
    published.main(dataclasses.replace(settings, stage="choose"))
    assert len(calls) == 10  # no fold is chosen twice

    def interrupted(*given):
        if len(fitted) == 4:
            raise KeyboardInterrupt
        fitted.append(given)
        return fit(*given)

    monkeypatch.setitem(published.METHODS, "ALS", (record_and_choose, interrupted))
    with pytest.raises(KeyboardInterrupt):
        published.main(settings)
    monkeypatch.setitem(
        published.METHODS, "ALS", (record_and_choose, lambda *given: fitted.append(given) or fit(*given))
    )
    result = published.main(settings)["metrics"]["rows"]
    assert len(fitted) == 10  # the four finished folds are not fitted again
    assert len(result) == 10 + 10 + 5
    printed = capsys.readouterr().out.split("results:")[-1]
    mean = np.mean([result[f"ml-100k 5-fold {k}, ALS"]["rmse"] for k in range(5)])
    assert f"{mean:.4f}" in printed
    y = folds["ml-100k 5-fold 2"][1].value.astype(np.float64)
    row = result["ml-100k 5-fold 2, Gibbs"]
    each = [np.sqrt(np.mean((y - value) ** 2)) for value in (3, 4)]
    np.testing.assert_allclose(row["rmse"], np.mean(each), rtol=1e-6)
    np.testing.assert_allclose(row["rmse_deviation"], np.std(each, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(row["rmse_together"], np.sqrt(np.mean((y - 3.5) ** 2)), rtol=1e-6)
    np.testing.assert_allclose(row["mae"], np.mean([np.abs(y - value).mean() for value in (3, 4)]), rtol=1e-6)
    np.testing.assert_allclose(row["mae_together"], np.abs(y - 3.5).mean(), rtol=1e-6)
    assert "jaxrec: Gibbs, 2 chains together" in printed
    # the sampler against the stronger baseline, which is fitted again if its row is of another run
    against = row["against"]
    rmses = {name: result[f"ml-100k 5-fold 2, {name}"]["rmse"] for name in ("biases", "ALS")}
    assert against["baseline"] == min(rmses, key=rmses.get)
    expected = row["rmse_together"] ** 2 - rmses[against["baseline"]] ** 2
    np.testing.assert_allclose(against["difference"], expected, rtol=1e-4)
    assert against["low"] < expected < against["high"]
    assert result["ml-100k u5, ALS"]["against"]["baseline"] == "biases"
    assert "against" not in result["ml-100k u5, biases"]
    del result["ml-100k 5-fold 2, Gibbs"], result["ml-100k 5-fold 0, ALS"]["against"]
    (tmp_path / "out" / "published.json").write_text(json.dumps({"metrics": {"rows": result}}))
    again = published.main(settings)["metrics"]["rows"]
    assert again["ml-100k 5-fold 2, Gibbs"]["against"] == against
    assert "against" not in again["ml-100k 5-fold 0, ALS"]  # rows are not computed again for it
    assert "(0 of 5)" in capsys.readouterr().out
    assert (tmp_path / "out" / "published.png").exists()


def test_the_committed_choices_of_the_published_tables_are_complete():
    choices = json.loads(Path(published.__file__).with_name("published_choices.json").read_text())
    sampled = [f"ml-100k u{k + 1}" for k in range(5)] + [f"ml-1m 90/10 {k}" for k in range(3)]
    sampled += [f"{name} 5-fold {k}" for name in ("ml-100k", "jester5k") for k in range(5)]
    assert set(choices) == {*sampled, *(f"ml-1m 5-fold {k}" for k in range(5))}
    for fold, by_method in choices.items():
        assert set(by_method["ALS"]) == {"rank", "l2", "l2_bias", "exponent", "validation_rmse"}
        if fold in sampled:
            assert set(by_method["Gibbs"]) == {"model", "rank", "sweeps", "validation_rmse"}


def test_l2_grows_with_the_rating_count_by_the_exponent(monkeypatch):
    seen = {}
    monkeypatch.setattr(published.solvers, "als", lambda *a, l2, **k: (seen.update(l2=l2), None))
    ratings = data.Ratings([0, 0, 0, 1], [0, 1, 2, 0], [1.0] * 4, 3, 3)
    choice = {"rank": 1, "l2": 2.0, "l2_bias": 1.0, "exponent": 0.5}
    published.fit(ratings, choice, published.Settings())
    np.testing.assert_allclose(
        seen["l2"][0], 2 * np.sqrt(np.array([3, 1, 1]) / (4 / 3)), rtol=1e-6
    )  # no ratings count as one


def test_a_table_wider_than_a_terminal_is_printed_in_parts(capsys):
    """Each with the first columns; every cell is printed."""
    names = [f"measure {n}" for n in range(12)]
    rows = [{"data": "a", "model": f"m{r}"} | {name: r + n / 100 for n, name in enumerate(names)} for r in range(2)]
    harness.table(rows, keys=2)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    headers = [line.split("  ") for line in lines if "model" in line]
    assert len(headers) == 2
    printed = [[cell.strip() for cell in header if cell.strip()] for header in headers]
    assert [each[:2] for each in printed] == [["data", "model"]] * 2
    assert printed[0][2:] + printed[1][2:] == names
    for r in range(2):
        row = [cell for line in lines if f" m{r} " in line for cell in line.split()[2:]]
        assert row == [f"{r + n / 100:.4f}" for n in range(12)]
    harness.table([{"only": "x" * 150, "more": 1.0}])
    assert "1.0000" in capsys.readouterr().out


def test_occurrence_counts_earlier_rows_and_together_concatenates_ratings():
    np.testing.assert_array_equal(harness.occurrence(np.array([3, 1, 3, 3, 1])), [0, 0, 1, 2, 1])
    a, b = data.Ratings([0], [1], [2.0], 2, 2), data.Ratings([1], [0], [3.0], 2, 2)
    both = harness.together(a, b)
    assert (both.user.tolist(), both.item.tolist(), both.value.tolist()) == ([0, 1], [1, 0], [2.0, 3.0])


@pytest.mark.slow
@pytest.mark.parametrize("module", [quickstart, als, gradient_descent])
def test_results_are_reproducible(module, tmp_path):
    small = {"rank": 2, "user": 3, "film": "Film 1"} if module is quickstart else {"l2s": (2.0,)}
    if module is als:
        small |= {"ranks": (2,), "l2_biases": (1.0,)}
    settings = module.Settings(**TINY, out=str(tmp_path), **small)
    if module is gradient_descent:
        settings = dataclasses.replace(settings, adam_iterations=20, descent_iterations=20)
    strip = lambda r: {k: v for k, v in r["metrics"].items() if "seconds" not in k}
    assert strip(module.main(settings)) == strip(module.main(settings))


def test_predictions_are_clipped_to_the_scale():
    ratings = data.Ratings([0, 0], [0, 1], [5.0, 4.0], 1, 2)
    factors = quickstart.models.baselines.popularity(ratings)  # it predicts 1 for both
    found = harness.errors(factors, ratings, (3.0, 5.0))
    assert found == pytest.approx({"rmse": np.sqrt((4 + 1) / 2), "mae": 1.5})  # one user has no standard error
    assert harness.errors(factors, ratings, None)["mae"] == pytest.approx((4 + 3) / 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nosuch", "1"], "unrecognized arguments: --nosuch"),
        (["--rank", "many"], "argument --rank: invalid int value: 'many'"),
        (["--see", "1"], "unrecognized arguments: --see"),  # settings cannot be abbreviated
    ],
)
def test_unknown_and_mistyped_settings_are_errors(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.quickstart", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_a_result_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        harness.report("broken", harness.Settings(out=str(tmp_path)), {"test_rmse": float("nan")}, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_the_audit_of_the_split_is_printed_and_written(tmp_path, capsys):
    settings = harness.Settings(**TINY, out=str(tmp_path))
    train, test = harness.split(harness.load(settings), settings)
    expected = json.loads(json.dumps(evaluation.audit(train, test).to_dict()))
    assert expected["test_ratings"] == 240
    harness.report("one", settings, {}, 0.0)
    assert json.loads((tmp_path / "one.json").read_text())["audit"] == expected
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("audit: 0 pairs in both; ")]
    assert f"drift of items {expected['item_drift']:.3f} ({expected['item_drift_if_random']:.3f} by chance)" in line

    several = dataclasses.replace(settings, seed=1)
    harness.audit(train, test, several, name="fold 1")
    harness.audit(test, train, several, name="fold 2")
    written = harness.report("several", several, {}, 0.0)["audit"]
    assert (set(written), written["fold 2"]["train_ratings"]) == ({"fold 1", "fold 2"}, 240)
    assert "audit of fold 2: " in capsys.readouterr().out
    assert harness.report("none", dataclasses.replace(settings, seed=2), {}, 0.0)["audit"] is None


def test_a_failed_write_keeps_the_old_file(tmp_path):
    harness.report("kept", harness.Settings(out=str(tmp_path)), {"test_rmse": 1.0}, 0.0)

    def fail(axes):
        raise RuntimeError("while plotting")

    def half(path):
        path.write_text("half")
        raise RuntimeError("while writing")

    with pytest.raises(RuntimeError, match="while plotting"):
        harness.plot("kept", harness.Settings(out=str(tmp_path)), fail)
    with pytest.raises(RuntimeError, match="while writing"):
        harness.write(tmp_path / "kept.json", half)
    assert json.loads((tmp_path / "kept.json").read_text())["metrics"] == {"test_rmse": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]


NETWORKS = {"layers": (16, 8), "width": 4, "rank": 2, "steps": 60, "rate": 0.01}


@pytest.mark.slow
def test_hybrid_writes_errors_near_those_of_the_baseline_or_lower(tmp_path):
    settings = hybrid.Settings(
        **TINY, **NETWORKS, out=str(tmp_path), dropouts=(0.1,), l2=2.0, l2_bias=1.0, seeds=2, seeds_to_choose=2
    )
    hybrid.main(settings)
    values = read(tmp_path, "hybrid")["metrics"]
    assert (
        values["hybrid_together_rmse"] <= values["hybrid_rmse"]
    )  # the error of a mean is at most the mean of the errors
    assert values["hybrid_rmse"] < values["damped_biases_rmse"] * 1.1
    assert values["hybrid_dropout"] == 0.1


def test_the_features_of_jokes_are_the_words_of_their_texts():
    jokes = np.array(["A duck walks in", "The duck pays", "Two nuns walk"])
    dataset = data.Dataset("jester5k", data.Ratings([0], [0], [1.0], 2, 3), titles=jokes)
    content, user_columns, item_columns = films.content(dataset)
    assert item_columns.names == ("text:duck",)  # the only word that occurs in two jokes
    np.testing.assert_allclose(content.items[:, 0], [1, 1, 0])
    assert content.users.shape == (2, 1)
    assert user_columns.names == ("user",)


@pytest.mark.slow
def test_cold_start_predicts_better_from_more_ratings(tmp_path):
    settings = cold_start.Settings(
        **TINY, **NETWORKS, out=str(tmp_path), als_rank=2, als_l2=2.0, given=(0, 5), sweeps=5
    )
    cold_start.main(settings)
    values = read(tmp_path, "cold_start")["metrics"]
    for name in ("damped_biases", "ALS,_folded_in", "features_and_histories", "hybrid"):
        assert values[f"user_RMSE_{name}_given_5"] < values[f"user_RMSE_{name}_given_0"]
    assert "user_RMSE_popularity_given_0" not in values  # popularity does not predict ratings
    assert 0 <= values["user_NDCG at 10_popularity_given_0"] <= 1
    assert values["item_AUC_popularity_given_0"] == 0.5  # all new films have the same popularity


@pytest.mark.slow
def test_the_harness_ranks_the_full_catalog_without_seen_items():
    dataset = data.synthetic.low_rank(rng=0)
    train, test = data.splits.random(dataset.ratings, test_fraction=0.2, rng=0)
    factors = baselines.popularity(train)
    found = harness.ranking_metrics(factors, train, test, k=5)
    count = np.bincount(train.item, minlength=50)
    values = []
    for user in np.unique(test.user):
        seen = set(train.item[train.user == user].tolist())
        best = [i for i in np.argsort(-count, kind="stable") if i not in seen][:5]
        liked = set(test.item[test.user == user].tolist())
        values.append((len(liked & set(best)) / 5, len(liked & set(best)) / len(liked)))
    np.testing.assert_allclose([found["precision"], found["recall"]], np.mean(values, axis=0), rtol=1e-5)
    none = harness.ranking_metrics(factors, train, test, k=5, allowed=np.zeros(50, bool))
    assert none == {"precision": 0, "recall": 0, "ndcg": 0}


def with_times(*_, rng):
    """The synthetic ratings of 60 users, with random times."""
    dataset = LOW_RANK(60, 50, 1200, noise=0.5, rng=rng)
    r = dataset.ratings
    time = np.random.default_rng(rng).permutation(len(r))
    return dataclasses.replace(dataset, ratings=data.Ratings(r.user, r.item, r.value, 60, 50, time=time))


LOW_RANK = data.synthetic.low_rank


@pytest.mark.slow
def test_retrieve_and_rank_writes_the_recall_of_every_source(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data.synthetic, "low_rank", with_times)
    settings = retrieve_and_rank.Settings(
        data="synthetic", out=str(tmp_path), layers=(16, 8), width=4, steps=40, rate=0.01, batch=64, size=40, near=10,
        temperatures=(0.3, 0.6), liked=3.5, popular=5, of_region=5, of_genre=5,
    )  # fmt: skip
    retrieve_and_rank.main(settings)
    values = read(tmp_path, "retrieve_and_rank")["metrics"]
    sources = [values[f"recall_known_{name.replace(' ', '_')}"] for name in retrieve_and_rank.SOURCES]
    assert max(sources) <= values["recall_known_all_together"] <= sum(sources) + 1e-6
    assert values["temperature"] in (0.3, 0.6)
    assert 0 <= values["ndcg_known_candidates,_ranked"] <= 1
    shown = capsys.readouterr().out
    assert shown.count("last watched: ") == 3
    assert "nearest to the user" in shown


def test_retrieve_and_rank_refuses_ratings_without_times(tmp_path):
    with pytest.raises(ValueError, match="synthetic has no times"):
        retrieve_and_rank.main(retrieve_and_rank.Settings(data="synthetic", out=str(tmp_path)))


@pytest.mark.slow
def test_ranking_head_compares_three_orders_of_the_same_candidates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data.synthetic, "low_rank", with_times)
    settings = ranking_head.Settings(
        data="synthetic", out=str(tmp_path), layers=(16, 8), width=4, steps=20, rate=0.01, batch=64, size=40, near=10,
        liked=3.5, popular=5, of_region=5, of_genre=5, hidden=(8,), seeds=2, head_batch=32, head_epochs=(1, 3),
    )  # fmt: skip
    ranking_head.main(settings)
    values = read(tmp_path, "ranking_head")["metrics"]
    assert values["epochs"] in (1, 3)
    names = ("by_the_heads", "by_the_product", "by_popularity")
    assert all(0 <= values[f"{metric}_known_{name}"] <= 1 for name in names for metric in ("precision", "recall"))
    # they rank the same candidates in different orders
    assert len({values[f"ndcg_known_{name}"] for name in names}) == 3
    assert "validation NDCG at 10 by epochs: 0: " in capsys.readouterr().out


@pytest.mark.slow
def test_gibbs_chooses_on_validation_and_reads_the_test_part_once(tmp_path, monkeypatch, capsys):
    calls = []
    rmse = gibbs.rmse
    monkeypatch.setattr(gibbs, "rmse", lambda mean, ratings: calls.append(len(ratings)) or rmse(mean, ratings))
    monkeypatch.setattr(_gibbs, "DENSE_CELLS", 60 * 50 - 1)  # the layout of large data
    settings = gibbs.Settings(
        **TINY, out=str(tmp_path), models=("rated, one noise",), ranks=(1, 2), sweeps=(20, 40), burn_in=10, chains=2
    )
    gibbs.main(settings)
    metrics = read(tmp_path, "gibbs")["metrics"]
    validation, test = round(0.1 * (1200 - 240)), 240
    assert calls == [validation] * 4 + [test] * 3  # each rank and number of sweeps; then each chain, and both together
    assert metrics["rated_one_noise_rank"] in (1, 2)
    assert metrics["rated_one_noise_sweeps"] in (20, 40)
    assert 0.45 < metrics["rated_one_noise_together"] < metrics["damped_biases_rmse"]
    assert 0.85 < metrics["rated_one_noise_95"] <= 1
    assert 1 <= metrics["rated_one_noise_noise_ess"] <= 60 * 3
    assert metrics["rated_one_noise_noise_r_hat"] > 0.9
    assert "rated, one noise, one error" in capsys.readouterr().out
    with pytest.raises(ValueError, match="synthetic has no side information"):
        gibbs.main(dataclasses.replace(settings, models=("side",)))


@pytest.mark.slow
def test_gibbs_with_ordinal_levels_beats_the_biases(monkeypatch):
    dataset = data.synthetic.low_rank(rng=0)
    stars = dataclasses.replace(dataset.ratings, value=np.clip(np.round(dataset.ratings.value), 1, 5))
    train, test = data.splits.random(stars, test_fraction=0.2, rng=0)
    monkeypatch.setitem(gibbs.MODELS, "rated, ordinal", (("rated",), True, True))
    settings = gibbs.Settings(burn_in=10)
    posterior, _ = gibbs.sample(train, test, dataset, "rated, ordinal", 2, 40, settings, chains=1)
    assert float(posterior.count[0]) == 30
    biases = harness.errors(baselines.damped_biases(train), test, dataset.scale)["rmse"]
    assert gibbs.rmse(posterior.mean[0], test) < biases


def test_gibbs_features_are_the_rated_items_and_users_of_the_train_part():
    ratings = data.synthetic.low_rank(rng=0).ratings
    (user_columns,), (item_columns,) = gibbs.rated(ratings)
    assert (user_columns.shape, item_columns.shape) == ((60, 50), (50, 60))
    np.testing.assert_allclose((user_columns**2).sum(axis=1), 1)
    np.testing.assert_array_equal(user_columns.T > 0, item_columns > 0)
    assert user_columns[ratings.user[0], ratings.item[0]] > 0
