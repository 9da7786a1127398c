"""The error for invalid requests of users, as opposed to errors of programs."""


class RefusedError(ValueError):
    """A request cannot be fulfilled; the message contains everything that a user needs."""
