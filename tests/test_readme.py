"""README is one page, its code and that of docs/features.md run as they stand, on synthetic ratings of ml-100k's ids.

Their doctests run by pytest's glob. The training is cut to two epochs: here it is to run, not to learn.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxrec import data

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small_films(as_users_run, monkeypatch, tmp_path):
    """Synthetic ratings in place of ml-100k, with tables of users and items, and a working folder."""
    films = data.synthetic.low_rank(943, 1682, 20_000, rng=0)
    rng = np.random.default_rng(0)
    jobs = [*rng.choice(["programmer", "artist"], 942), "programmer"]
    users = {"user_id": films.ratings.user_ids, "age": rng.integers(10, 70, 943), "occupation": jobs}
    genres = [["Comedy"], ["Drama", "Crime"], []]
    items = {"item_id": films.ratings.item_ids, "year": rng.integers(1930, 1999, 1682)}
    items["genres"] = [genres[n % 3] for n in range(1682)]
    films = dataclasses.replace(films, scale=(1.0, 5.0), users=pl.DataFrame(users), items=pl.DataFrame(items))
    monkeypatch.setattr(data, "load", lambda name: films)
    rows = data.rows  # two buckets a side in place of ten: each is compiled for itself
    monkeypatch.setattr(
        data, "rows", lambda *given, **options: rows(*given, min_length=32, bucket_growth=30.0, **options)
    )
    monkeypatch.chdir(tmp_path)  # models are saved


def run(name, capsys):
    """Runs the blocks of a page as one program, whose training is cut; returns what it printed."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)
    code = "\n".join(block for block in blocks if ">>>" not in block)
    assert "data.load" in code
    exec(re.sub(r"epochs=\d+", "epochs=2", code), {})
    return capsys.readouterr().out


def test_the_readme_is_one_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:20])
    assert "make demo" in first
    assert "make test" in first


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_to_files(name):
    """Those of docs/ are checked by `make docs`."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
@pytest.mark.usefixtures("small_films")
def test_the_readmes_code_runs(capsys):
    shown = run("README.md", capsys)
    assert "shape: (10, 5)" in shown, "five films for each of two users"
    assert shown.count("Film ") == 10


@pytest.mark.slow
@pytest.mark.usefixtures("small_films")
def test_the_code_of_features_towers_and_a_request_runs(tmp_path, capsys):
    shown = run("docs/features.md", capsys)
    assert (tmp_path / "request.jaxrec").exists()
    assert len(re.findall(r"^[01]\.\d+", shown, flags=re.MULTILINE)) == 1
    assert shown.count("Film ") == 5, "by the request"
