"""The words of errors that other libraries raise, and an error of this one; nothing here loads torch."""

from fastfid.runtime.terminal import printable

MOST_CHARACTERS = 200  # of another library's words in a sentence: a line on a wide terminal


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its class if it has none.

    `shown` cuts and escapes it, because the words may come from a damaged file.
    """
    if isinstance(error, KeyError):  # its message is the key alone
        return shown(f"it has no {error}")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0].strip())


def one_line(error: BaseException, most: int = MOST_CHARACTERS) -> str:
    """The message of an error on one line, or the name of its class if it has none, cut and escaped by `shown`."""
    return shown(" ".join(str(error).split()) or type(error).__name__, most)


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    """Text from a file for use in a message: cut above `most` characters, with control characters as escapes."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return printable(text, kept="")


class OtherRankFailed(ValueError):
    """Raised on ranks above 0 in place of an error that rank 0 reports."""
