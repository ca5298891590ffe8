"""The pages of docs/ run as they are printed, and what stands below their code is what they print."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
import pytest

from tests.test_readme import small_films  # noqa: F401, a fixture

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md") if path.stem != "index")
NO_PROGRAM = {"index", "export", "devices"}  # devices: in a process of its own
HOW_TO = sorted(path.stem for path in (ROOT / "docs" / "how-to").glob("*.md") if path.stem not in NO_PROGRAM)


def module_of(path):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "docs" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path):
    """The python blocks of a Markdown file that are no doctests."""
    found = re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {title: code for title, code in found if ">>>" not in code}


RECIPES = blocks(ROOT / "docs" / "recipes.md")


def test_there_are_nine_of_at_most_fifteen_lines():
    assert len(RECIPES) == 9
    lines = {title: sum(bool(line.strip()) for line in code.splitlines()) for title, code in RECIPES.items()}
    assert max(lines.values()) <= 15, lines


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title, as_users_run, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    frame = {"reader": rng.choice(["ann", "bob", "eve", "joe"], 60), "book": rng.integers(100, 120, 60)}
    frame["stars"] = rng.integers(1, 6, 60)
    pl.DataFrame(frame).unique(["reader", "book"], maintain_order=True).write_csv(tmp_path / "ratings.csv")
    monkeypatch.chdir(tmp_path)
    exec(RECIPES[title], {})


def ran(folder, name, tmp_path, monkeypatch, *, shorter):
    """(shown before, printed now) of each block of a page; figures and files go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    (tmp_path / "figures").mkdir()
    page = (ROOT / "docs" / folder / f"{name}.md").read_text()
    if shorter:  # on synthetic ratings the code is to run, not to learn
        page = page.replace("sweeps=100", "sweeps=40")  # two blocks of 20 sweeps: one program
    outputs = []
    module_of("run_pages.py").run(page, outputs)
    if "pyplot" in page:
        matplotlib.pyplot.close("all")
    return outputs


def numbers(text):
    return np.array([float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)])


def words(text):
    return re.sub(r"\d+(?:\.\d+)?", "#", text).split()


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_runs_on_a_stand_in(name, small_films, tmp_path, monkeypatch):  # noqa: F811, the fixture
    outputs = ran("tutorials", name, tmp_path, monkeypatch, shorter=True)
    assert any(printed for _, printed in outputs)
    assert (tmp_path / "figures" / f"{name}.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", HOW_TO)
def test_how_to_page_runs(name, small_films, tmp_path, monkeypatch):  # noqa: F811, the fixture
    assert any(printed for _, printed in ran("how-to", name, tmp_path, monkeypatch, shorter=True))


@pytest.mark.slow
@pytest.mark.cpu
def test_the_page_of_many_devices_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/devices.md").read_text(), flags=re.DOTALL)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == ["2", "(300,", "8)"], run.stderr


@pytest.mark.slow
@pytest.mark.skipif("JAXREC_DATA" not in os.environ, reason="ml-100k is not here: set JAXREC_DATA")
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_prints_what_stands_below_its_code(name, as_users_run, tmp_path, monkeypatch):
    for shown, printed in ran("tutorials", name, tmp_path, monkeypatch, shorter=False):
        assert words(printed) == words(shown)
        np.testing.assert_allclose(numbers(printed), numbers(shown), rtol=0.02, atol=0.01)


@pytest.mark.slow
def test_the_page_of_the_sequence_ridge_runs(as_users_run, tmp_path, monkeypatch):
    (_, printed), _ = ran(".", "sequence_ridge", tmp_path, monkeypatch, shorter=False)
    assert "0.75" in printed


def test_docstrings_become_restructured_text():
    as_rst = module_of("_extensions/docstrings.py").as_rst
    assert as_rst(["|a| * b_ of `x`s, **not** y."]) == [r"\|a\| \* b\_ of ``x``\ s, **not** y."]
    assert as_rst(["so", "", "    a * b", "", "and"])[:4] == ["so", "", "::", ""], "a displayed formula"
    assert as_rst([">>> 2 * 3", "6"]) == [">>> 2 * 3", "6"]
    assert as_rst(["| a | b |", "| --- | --- |", "| 1 | `c` |"])[3:] == [
        "   * - a",
        "     - b",
        "   * - 1",
        "     - ``c``",
        "",
    ]
    assert as_rst(["[1] first", "    second"]) == ["- [1] first second"]


def test_every_page_is_in_a_list():
    """A page that no list names cannot be found from the first page."""
    for folder in ("tutorials", "how-to", "concepts"):
        listed = (ROOT / "docs" / folder / "index.md").read_text().split()
        pages = {path.stem for path in (ROOT / "docs" / folder).glob("*.md")} - {"index"}
        assert pages <= set(listed), folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/features.md", "docs/recipes.md"])
def test_mypy_passes(name, tmp_path):
    text = (ROOT / name).read_text()
    code = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if ">>>" not in block]
    files = code if name == "docs/recipes.md" else ["\n\n".join(code)]  # the others are one program each
    for number, each in enumerate(files):
        (tmp_path / f"block_{number}.py").write_text(each)
    paths = [str(path) for path in sorted(tmp_path.glob("*.py"))]
    mypy = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    options = ["--allow-untyped-defs", "--cache-dir", str(tmp_path / "cache")]
    run = subprocess.run([*mypy, *options, *paths], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout
