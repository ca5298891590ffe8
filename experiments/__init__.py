"""One script, one question: `python -m experiments.NAME --help` shows its settings."""
