"""The one exception that a user is meant to see."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what was expected, what came and what to do."""
