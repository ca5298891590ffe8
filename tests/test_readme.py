"""The README's code runs as it stands, on synthetic ratings of ml-100k's ids. (Its doctests run by pytest's glob.)"""

import re
from pathlib import Path

from jaxrec import data

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_code_runs(as_users_run, monkeypatch, tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    code = "\n".join(block for block in blocks if ">>>" not in block)
    assert "jaxrec.data.load" in code
    films = data.synthetic.low_rank(943, 1682, 20_000, rng=0)
    monkeypatch.setattr(data, "load", lambda name: films)
    object.__setattr__(films, "scale", (1.0, 5.0))
    monkeypatch.chdir(tmp_path)  # it saves a model
    exec(code, {})
    assert (tmp_path / "films.jaxrec").exists()
    assert len(capsys.readouterr().out.splitlines()) == 5 + 1  # five films and an error
