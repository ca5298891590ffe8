"""The settings that an experiment of published tables chose on validation: a JSON file beside it, committed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments import harness


def read(path: Path) -> dict[str, Any]:
    """Table -> method -> what was chosen; empty if there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def add(path: Path, table: str, method: str, chosen: Any) -> dict[str, Any]:
    """Adds a choice to the file as it is now, since another process may have added others meanwhile; returns all."""
    choices = read(path)
    choices.setdefault(table, {})[method] = chosen
    text = json.dumps(choices, indent=1) + "\n"
    harness.write(path, lambda temporary: temporary.write_text(text))
    return choices


def methods(settings: Any, table: str, chosen: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """The methods that `settings` names; else all that are known, and where test is read, all that have a choice."""
    if settings.methods:
        return list(settings.methods)
    here = [method for method in known if settings.stage == "choose" or method in chosen.get(table, {})]
    if without := [method for method in known if method not in here]:
        print(f"{table}: without a choice, so left out (--stage choose makes one): {', '.join(without)}", flush=True)
    return here
