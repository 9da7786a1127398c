"""Experiments that reproduce the paper's results; see README.md in this directory."""

from experiments.common import interrupts as _interrupts

if _interrupts.is_command(__name__):
    # Here, because the imports that follow take seconds, in which a signal may arrive.
    _interrupts.exit_at_once()
