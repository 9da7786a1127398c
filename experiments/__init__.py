"""Experiments that reproduce the paper's results; see README.md in this directory."""
