"""The recipes run as they are printed, and the code of README and docs/ passes mypy."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[1]


def blocks(path):
    """The python blocks of a Markdown file that are no doctests."""
    found = re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {title: code for title, code in found if ">>>" not in code}


RECIPES = blocks(ROOT / "docs" / "recipes.md")


def test_there_are_nine_of_at_most_fifteen_lines():
    assert len(RECIPES) == 9
    lines = {title: sum(bool(line.strip()) for line in code.splitlines()) for title, code in RECIPES.items()}
    assert max(lines.values()) <= 15, lines


@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title, as_users_run, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    frame = {"reader": rng.choice(["ann", "bob", "eve", "joe"], 60), "book": rng.integers(100, 120, 60)}
    frame["stars"] = rng.integers(1, 6, 60)
    pl.DataFrame(frame).unique(["reader", "book"], maintain_order=True).write_csv(tmp_path / "ratings.csv")
    monkeypatch.chdir(tmp_path)
    exec(RECIPES[title], {})


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
