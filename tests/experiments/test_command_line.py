"""The command line of every experiment and benchmark: without options it has the defaults, and every option is read."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest

from experiments import harness

ROOT = Path(harness.__file__).parents[1]
FILES = [path for folder in ("experiments", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]
SCRIPTS = [f"{path.parent.name}.{path.stem}" for path in FILES if "harness.run(main" in path.read_text()]


def parsed(name, monkeypatch, *options):
    """The settings that a command line gives the main of a script."""
    module, found = importlib.import_module(name), []

    def main(settings):
        found.append(settings)

    main.__module__ = name
    monkeypatch.setattr(sys, "argv", [name, *options])
    harness.run(main, module.Settings)
    return found[0]


def test_there_are_scripts():
    assert {"experiments.quickstart", "experiments.published_sequences"} <= set(SCRIPTS)
    assert len(SCRIPTS) > 20


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_options_the_settings_are_the_defaults(name, monkeypatch):
    assert parsed(name, monkeypatch) == importlib.import_module(name).Settings()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_is_read(name, monkeypatch):
    defaults = importlib.import_module(name).Settings()
    other = lambda value: value + "x" if isinstance(value, str) else type(value)(value + 1)
    for field in dataclasses.fields(defaults):
        value = getattr(defaults, field.name)
        expected = tuple(map(other, value or ("a", "b"))) if isinstance(value, tuple) else other(value)
        words = [str(each) for each in (expected if isinstance(expected, tuple) else (expected,))]
        found = parsed(name, monkeypatch, f"--{field.name}", *words)
        assert found == dataclasses.replace(defaults, **{field.name: expected}), field.name


def test_an_unknown_option_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed("experiments.quickstart", monkeypatch, "--l3", "1")
    assert re.search("unrecognized arguments: --l3", capsys.readouterr().err)
