"""The benchmark of sequence models on small sizes: it measures, and its two sides see the same events."""

import numpy as np
import pytest

from benchmarks import sequence_speed

SMALL = {"N_USERS": 400, "N_ITEMS": 60, "WINDOW": 8, "WIDTH": 8, "HIDDEN": 16, "NEGATIVES": 8, "EPOCHS": 2}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(sequence_speed, name, value)


@pytest.mark.slow
def test_our_side_is_measured():
    found = sequence_speed.ours()
    assert found.keys() == {"tokens a second", "users a second", "first epoch, seconds"}
    assert all(value > 0 for value in found.values())


def test_the_sequences_fit_the_window():
    length, items = sequence_speed.lengths_and_items()
    assert (len(length), len(items)) == (400, length.sum())
    assert 4 <= length.min() <= length.max() <= 8
    assert 0 <= items.min() <= items.max() < 60


def test_speeds_are_medians_without_the_run_that_compiles():
    found = sequence_speed.figures(1000, [50.0, 2.0, 4.0, 9.0], [70.0, 1.0, 2.0, 5.0])
    assert found == {"tokens a second": 250, "users a second": 200, "first epoch, seconds": 50.0}
    assert np.isfinite(list(found.values())).all()
