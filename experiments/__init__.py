"""Experiments that reproduce the paper's results; see README.md in this directory."""

from experiments.common import interrupts as _interrupts

if _interrupts.is_command(__name__):
    # Here, because what follows is seconds of imports, in which a signal may come already.
    _interrupts.exit_at_once()
