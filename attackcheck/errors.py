"""The one exception that a user is meant to see."""

__all__ = ["CannotWrite", "InputError", "in_one_line", "printable"]


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what was expected, what came and what to do."""


class CannotWrite(InputError):  # noqa: N818
    """Results cannot be written, mostly since the disk is full: the run ends with what it has."""


def in_one_line(error: BaseException, length: int = 200) -> str:
    """What an exception says, as the tail of a sentence: type and message, one line, no control characters."""
    said = " ".join(str(error).split())
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return printable(text if len(text) <= length else text[: length - 3] + "...")


def printable(text: str) -> str:
    """Text from a file or a stranger, with whatever could move a terminal's cursor made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
