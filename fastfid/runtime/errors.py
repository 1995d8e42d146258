"""Words of errors that other libraries raise."""

from fastfid.runtime.terminal import printable

MOST_CHARACTERS = 200  # of another library's words in a sentence: a line on a wide terminal


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its class if it has none.

    It is as `shown` writes it, because the words may come from a damaged file.
    """
    if isinstance(error, KeyError):  # its message is the key alone
        return shown(f"it has no {error}")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0].strip())


def one_line(error: BaseException) -> str:
    """The whole message of an error on one line, or the name of its class if it has none; as `shown` writes it."""
    return shown(" ".join(str(error).split()) or type(error).__name__)


def shown(text: str) -> str:
    """Words of a file for a sentence: cut if long, and characters that a terminal would obey written as escapes."""
    text = text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
    return printable(text, kept="")
