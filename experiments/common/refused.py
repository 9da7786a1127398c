"""The error of a person's request, as against the errors of programs."""


class RefusedError(ValueError):
    """What was asked for cannot be done; the message says why, and is all that a user needs."""
