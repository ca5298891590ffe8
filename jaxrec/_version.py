"""The version of jaxrec, which pyproject.toml reads from here: a copy that is not installed knows it too."""

__version__ = "0.2.0"
