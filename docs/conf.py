"""How `make docs` builds the site: Sphinx with MyST (pages are Markdown) and Furo.

A broken link, a name in backticks that does not exist, a formula that cannot be set, or a public name without a
docstring is a warning, and every warning fails the build. Nothing is loaded from a network, neither by the build nor by
a reader's browser: formulas are MathML, which docutils makes of LaTeX and every current browser sets. (MathJax would be
two megabytes of scripts beside the pages, images would need LaTeX where the site is built.)

Zensical 0.0.73 with mkdocstrings was tried: it builds the page of `jaxrec.losses` well, in 3 seconds for this one's
minute, and reports pages and references that do not exist. It leaves formulas to a script in the reader's browser and
has no place yet for a check of its own, so that a public name without a docstring would pass.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "jaxrec"
author = "The jaxrec developers"
exclude_patterns = ["_build"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",  # the sources, with a link from every function
    "api_pages",
    "backticks",
    "mathml",
]

nitpicky = True
suppress_warnings = ["config.cache"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "jaxrec"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
