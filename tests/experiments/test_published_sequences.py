"""The published tables of sequences on a small Markov chain: stages, resuming, what is written."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import published_sequences, sequence_methods
from jaxrec import Ratings, data
from jaxrec.types import Dataset

N_USERS, N_ITEMS = 40, 15
RIDGE = [{"decays": [0.0], "powers": [1.0], "window": 4, "l2": 1.0, "future": 0.5, "horizon": 2, "backward": 0.1}]


def chain():
    """Each item is mostly followed by the next; every user has each item once at most."""
    rng = np.random.default_rng(0)
    user, item = [], []
    for j in range(N_USERS):
        sequence = (rng.integers(N_ITEMS) + np.arange(8)) % N_ITEMS
        swap = rng.integers(7)
        sequence[[swap, swap + 1]] = sequence[[swap + 1, swap]]
        user += [j] * 8
        item += sequence.tolist()
    return Dataset("chain", Ratings(user, item, np.ones(len(user)), N_USERS, N_ITEMS))


@pytest.fixture
def small(monkeypatch, tmp_path):
    dataset = chain()
    monkeypatch.setattr(data, "load", lambda name: dataset)
    monkeypatch.setattr(published_sequences, "CHOICES", tmp_path / "choices.json")
    candidates = {"popularity": [{}], "markov": [{"l2": 1.0}, {"l2": 5.0}], "knn": [{"power": 1.0, "window": 3}]}
    monkeypatch.setitem(published_sequences.CANDIDATES, "amazon-beauty", candidates | {"ridge": RIDGE})
    return published_sequences.Settings(tables=("amazon-beauty",), out=str(tmp_path / "out"))


@pytest.mark.slow
def test_choose_reads_no_test_item_then_test_reads_it_once_and_resumes(small, tmp_path, monkeypatch, capsys):
    choose = dataclasses.replace(small, stage="choose")
    with pytest.raises(ValueError, match="amazon-beauty, popularity: no settings chosen.*--stage choose"):
        published_sequences.main(dataclasses.replace(small, methods=("popularity",)))
    split = published_sequences.parts("amazon-beauty")
    assert (len(split.train), len(split.validation), len(split.test)) == (6 * N_USERS, N_USERS, N_USERS)
    seen = []
    measure = published_sequences.measure

    def record(scorer, train, relevant, **options):
        seen.append((len(train), relevant.item.tolist()))
        return measure(scorer, train, relevant, **options)

    monkeypatch.setattr(published_sequences, "measure", record)
    choices = published_sequences.main(choose)["amazon-beauty"]
    assert seen == [(len(split.train), split.validation.item.tolist())] * 7  # 1 + 2 + 1 + 3 powers
    assert json.loads((tmp_path / "choices.json").read_text())["amazon-beauty"] == choices
    for method in choices.values():
        figures = [tried["validation_ndcg@10"] for tried in method["tried"]]
        assert method["choice"]["validation_ndcg@10"] == max(figures)
    published_sequences.main(choose)
    assert len(seen) == 7  # no candidate is tried twice

    found = published_sequences.main(small)["metrics"]
    assert seen[7:] == [(len(split.rest), split.test.item.tolist())] * 16  # masked or not, fitted on all or train
    result = json.loads((tmp_path / "out/published_sequences.json").read_text())
    assert result["metrics"] == found
    for method in ("popularity", "markov", "knn", "ridge"):
        row = f"amazon-beauty/{method}"
        for name in ("hr@10", "ndcg@10", "ndcg@10_unmasked", "ndcg@10_train_only", "seconds", "validation_ndcg@10"):
            assert isinstance(found[f"{row}/{name}"], float)
        assert found[f"{row}/choice"] == choices[method]["choice"]
        assert found[f"{row}/ndcg@10_unmasked"] <= found[f"{row}/ndcg@10"]
    assert found["amazon-beauty/ridge/ndcg@10"] > found["amazon-beauty/popularity/ndcg@10"]
    assert len(result["comparison"]["amazon-beauty"]["comparisons"]) == 6  # three methods, two metrics
    again = published_sequences.main(small)
    assert len(seen) == 23
    assert again["comparison"] == result["comparison"]
    assert "eSASRec" in capsys.readouterr().out


def test_one_row_is_one_command(small, tmp_path):
    published_sequences.main(dataclasses.replace(small, stage="choose", methods=("ridge",)))
    found = published_sequences.main(dataclasses.replace(small, methods=("ridge",)))
    assert found["comparison"] == {"amazon-beauty": None}
    assert "amazon-beauty/ridge/ndcg@10" in found["metrics"]


def test_without_names_the_methods_that_have_a_choice_are_run_and_the_others_named(small, capsys):
    published_sequences.main(dataclasses.replace(small, stage="choose", methods=("markov", "popularity")))
    found = published_sequences.main(small)["metrics"]
    assert {name.split("/")[1] for name in found if "/" in name} == {"markov", "popularity"}
    assert (
        "amazon-beauty: without a choice, so left out (--stage choose makes one): knn, ridge" in capsys.readouterr().out
    )


NETWORK = {"window": 6, "width": 8, "layers": 1, "heads": 1, "dropout": 0.0, "learning_rate": 0.03, "rows": 8}
NETWORK |= {"epochs": 6, "patience": 3}


@pytest.mark.slow
def test_networks_stop_on_validation_and_attention_is_the_mean_of_three_seeds(small, monkeypatch):
    candidates = {"attention": [NETWORK, NETWORK | {"negatives": 5}], "gru": [NETWORK]}
    monkeypatch.setitem(published_sequences.CANDIDATES, "amazon-beauty", candidates)
    settings = dataclasses.replace(small, methods=("attention", "gru"))
    chosen = published_sequences.main(dataclasses.replace(settings, stage="choose"))["amazon-beauty"]
    assert len(chosen["attention"]["tried"]) == 2
    assert all(1 <= each["choice"]["best_epochs"] <= NETWORK["epochs"] for each in chosen.values())
    again = published_sequences.main(dataclasses.replace(settings, stage="choose"))
    assert again["amazon-beauty"] == chosen  # nothing is tried twice
    measured = []
    measure = published_sequences.measure

    def record(*args, **options):
        found = measure(*args, **options)
        measured.append(found.mean["ndcg@10"])
        return found

    monkeypatch.setattr(published_sequences, "measure", record)
    found = published_sequences.main(settings)["metrics"]
    assert len(measured) == 4 * 3 + 2 + 4  # three seeds, two ensembles; one seed
    assert found["amazon-beauty/attention/ndcg@10"] == pytest.approx(np.mean(measured[:3]), rel=1e-5)
    assert found["amazon-beauty/attention/ndcg@10_ensemble"] == measured[12]
    assert "amazon-beauty/gru/ndcg@10_ensemble" not in found


@pytest.mark.slow
def test_a_rate_along_a_cosine_is_0_after_the_last_of_the_epochs_and_not_before():
    train = chain().ratings
    choice = NETWORK | {"cosine": True}

    def parameters(epochs):
        model = sequence_methods.transformer(train, choice)
        fitted = sequence_methods.fit_network(model, train, choice | {"best_epochs": epochs})
        return jax.tree.leaves(fitted.scorer.params)

    last, after, before = (parameters(NETWORK["epochs"] + more) for more in (0, 2, -1))
    assert all(np.array_equal(*pair) for pair in zip(last, after, strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(last, before, strict=True))


@pytest.mark.slow
def test_seeds_fitted_at_once_are_those_fitted_alone():
    train = chain().ratings
    runs = [NETWORK | {"best_epochs": 2, "seed": seed} for seed in range(3)]
    together = published_sequences.fitted("attention", train, runs)
    for run, scorer in zip(runs, together, strict=True):
        (alone,) = published_sequences.fitted("attention", train, [run])
        assert all(map(np.array_equal, jax.tree.leaves(scorer.params), jax.tree.leaves(alone.params)))
    assert not np.array_equal(*(jax.tree.leaves(scorer.params)[0] for scorer in together[:2]))


@pytest.mark.parametrize("changed", [{"stage": "both"}, {"tables": ("beauty",)}, {"methods": ("ease",)}])
def test_unknown_words(small, changed):
    with pytest.raises(ValueError, match="expected one of"):
        published_sequences.main(dataclasses.replace(small, **changed))
