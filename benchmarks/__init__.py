"""One script, one cost question: checks the answer first, then times it; `python -m benchmarks.NAME --help`."""
