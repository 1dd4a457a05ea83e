"""The errors a data set or a picture of the user's can cause; every message is one line."""

from __future__ import annotations


def one_line(text: object) -> str:
    """What a decoder, a server or a file's name says, with all white space as single blanks."""
    return " ".join(str(text).split())


class DataError(ValueError):
    """A data set that cannot be used: which file or folder, the rule, the value."""


class ImageError(DataError):
    """A picture that cannot be used: the file, the rule it breaks, the value found.

    Attributes:
        path: the file, as it was given.
        reason: the rule and the value, without the file's name.
    """

    def __init__(self, path: object, reason: str) -> None:
        # One line whatever the decoder said or the file is called.
        self.path = one_line(path)
        self.reason = one_line(reason)
        super().__init__(f"{self.path}: {self.reason}")
