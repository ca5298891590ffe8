"""Runs the code of pages as one program each, and shows below every block what it printed.

    python docs/run_pages.py docs/tutorials/*.md

rewrites the ```text block after each ```python block, and leaves the figures that the page saves in its folder. The
tests run the same code (tests/test_docs.py) and compare what real data print.
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<shown>.*?)```\n)?", flags=re.DOTALL)


def run(page, outputs=None):
    """The page's text with what its code printed now; `outputs` receives (shown before, printed now) of each block."""
    names = {"__name__": "page"}

    def replaced(match):
        if ">>>" in match["code"]:  # a doctest, run by pytest
            return match[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match["code"], "<page>", "exec"), names)
        lines = "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
        if outputs is not None:
            outputs.append((match["shown"] or "", lines))
        shown = f"\n```text\n{lines}```\n" if lines else ""
        return f"```python\n{match['code']}```\n{shown}"

    return BLOCK.sub(replaced, page)


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jaxrec"  # the same ids, and so the same file, on every run
    home = Path.cwd()
    for name in sys.argv[1:]:
        path = home / name
        os.chdir(path.parent)
        path.write_text(run(path.read_text()))
        sys.stderr.write(f"ran {name}\n")
