"""The reports on small sizes: each is a table, and missing peers are named."""

import json

import pytest

from benchmarks import harness, reports, suite

pytestmark = pytest.mark.usefixtures("one_bucket")

SMALL = {
    "batches": (8,),
    "searched": (300,),
    "n_users": 60,
    "n_items": 40,
    "ratings": 900,
    "tenths": (10,),
    "sampler_rank": 2,
    "until": "synthetic",
    "rmse": 2.0,
    "repeats": 1,
}


def replace_peers(monkeypatch, peer):
    """Measures the project's cells in this process, and replaces the answer of a peer by peer(cell)."""

    def run(module, cell, **_):
        cell = json.loads(json.dumps(cell))
        own_module = suite if module == "benchmarks.suite" else reports
        return peer(cell) if module == "benchmarks.peers" else json.loads(json.dumps(own_module.measure(cell)))

    monkeypatch.setattr(harness, "in_fresh_process", run)


@pytest.mark.slow
def test_every_report_is_a_table(tmp_path, monkeypatch, capsys):
    replace_peers(monkeypatch, lambda cell: {"failed": "no such module"})
    tables = reports.main(reports.Settings(**SMALL, out=str(tmp_path)))["metrics"]
    assert {name: len(table) for name, table in tables.items()} == {
        "towers": 1,
        "approximate": 4,
        "growth": 1,
        "until": 2,
        "sampler": 1,
    }
    assert 0.2 < tables["sampler"][0]["noise"] < 1
    assert tables["towers"][0]["PyTorch ms"] == "failed"
    assert tables["towers"][0]["jaxrec ms"] > 0
    assert tables["until"][0]["rmse"] <= 2.0
    assert "torch_towers: no such module" in capsys.readouterr().out
    assert json.loads((tmp_path / "reports.json").read_text())["experiment"] == "reports"


def test_the_figures_of_a_peer_are_in_the_table(tmp_path, monkeypatch):
    replace_peers(monkeypatch, lambda cell: {"seconds": 2.0, "build": 3.0, "recall": 0.5})
    settings = reports.Settings(**SMALL, what=("approximate",), indexes=("IVF",), out=str(tmp_path))
    row = reports.main(settings)["metrics"]["approximate"][1]
    assert (row["build s"], row["64 queries ms"], row["recall"]) == (3.0, 2000.0, 0.5)


def test_an_unknown_report_is_refused(tmp_path):
    with pytest.raises(ValueError, match="what: expected some of towers"):
        reports.main(reports.Settings(what=("weather",), out=str(tmp_path)))


@pytest.mark.slow
def test_reports_before_a_failure_are_kept(tmp_path, monkeypatch):
    replace_peers(monkeypatch, lambda cell: {"failed": "no such module"})
    monkeypatch.setitem(reports.TABLES, "growth", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reports.main(reports.Settings(**SMALL, what=("towers", "growth"), out=str(tmp_path)))
    assert list(json.loads((tmp_path / "reports.json").read_text())["metrics"]) == ["towers"]


def test_an_index_that_takes_too_long_to_build_is_named(tmp_path, monkeypatch, capsys):
    replace_peers(monkeypatch, lambda cell: {"seconds": 2.0, "build": 3.0, "recall": 0.5})
    monkeypatch.setitem(reports.INDEXES, "HNSW", (*reports.INDEXES["HNSW"][:3], 299))
    tables = reports.main(reports.Settings(**SMALL, what=("approximate",), out=str(tmp_path)))["metrics"]
    assert not any("HNSW16" in row["index"] for row in tables["approximate"])
    assert "HNSW: of more than 299 items it takes too long to build" in capsys.readouterr().out
