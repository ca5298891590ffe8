"""Prose that a newcomer reads: the user is "they", and a number below 1 begins with 0."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("jaxrec", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN = {"she": r"\b(she|her|hers|herself)\b", "a bare decimal point": r"(?<=[\s(±~<])\.\d"}


def prose(source):
    """Comments and strings, with the line they begin in."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.start[0], token.string


def breaks(source):
    return [(line, name) for line, text in prose(source) for name, rule in FORBIDDEN.items() if re.search(rule, text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain(path):
    assert breaks(path.read_text()) == []


def test_what_breaks_a_rule_is_seen():
    assert breaks("# her ratings\nx = 'off by .5'\ny = '0.5 of x.5'\n") == [(1, "she"), (2, "a bare decimal point")]
