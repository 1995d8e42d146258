"""The parser's message about wrong arguments as one sentence, in place of a box of ten lines.

The box has parts between rules: the message, what the flag means, near names, and where the help is.  A message
that has none of the forms below is printed unchanged, on one line.
"""

from __future__ import annotations

import re

FRAME = str.maketrans("╭╮╰╯│", "     ")
RULE = re.compile(r"[─-]{5,}$")
NUMBERS = {"INT": "a whole number", "{None}|INT": "a whole number", "FLOAT": "a number", "{None}|FLOAT": "a number"}
WIDE = "2000"  # columns at which no line of a message is broken


def sentence_of(box: str, words: list[str]) -> str:
    """The sentence for the parser's message `box` about the words of a command line."""
    message, *parts = _parts(box)
    told = " ".join(message)
    help_of = next((line for part in parts for line in part if line.endswith("--help")), "")
    end = f"; see {re.sub('^For full helptext, (see|run) ', '', help_of)}" if help_of else ""
    if found := re.match(r"Error parsing (--?[\w.-]+)", told):
        return _wrong_value(found[1], words, parts) + end
    if found := re.match(r"invalid choice (.+) for argument '(.+?)'. Expected one of \((.*?),?\)\.", told):
        return f"{found[2]} is {found[1]}; choose one of {found[3].replace(chr(39), '')}{end}"
    if found := re.match(r"Missing value for argument '(.+?)'", told):
        return f"{found[1]} needs a value{end}"
    if found := re.match(r"Unrecognized options: (.*)", told):
        near = [line.split()[0] for part in parts if part[:1] == ["Perhaps you meant:"] for line in part[1:]]
        flags = [word for word in near if word.startswith("-")]
        return f"unrecognized arguments: {found[1].replace(', ', ' ')}{f'; did you mean {flags[0]}?' if flags else end}"
    if told.startswith("Missing from"):
        return f"{_missing(message)} missing{end}"
    return f"{told.rstrip('.')}{end}"


def _parts(box: str) -> list[list[str]]:
    """The stripped lines between the rules; of the first part the lines keep their indentation.

    The first line is the title.  The frame is drawn by spaces and hyphens where the terminal has ASCII alone.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        inside = line.translate(FRAME)[2:].rstrip()
        if RULE.match(inside.strip()):
            parts += [[]] if parts[-1] else []
        elif inside:
            parts[-1].append(inside if len(parts) == 1 else inside.strip())
    return parts


def _wrong_value(flag: str, words: list[str], parts: list[list[str]]) -> str:
    """What was given to a flag, what it takes, and what it means."""
    about = next((part[1:] for part in parts if part[:1] == ["Argument helptext:"]), [])
    takes = about[0].split(" ", 1)[1] if about and " " in about[0] else "another value"
    meaning = " ".join(about[1:])
    between = "" if not meaning else " " if meaning.startswith("(") else ", "
    return f"{flag} is {_given(flag, words)}; it takes {NUMBERS.get(takes, takes)}{between}{meaning}"


def _given(flag: str, words: list[str]) -> str:
    """The values after a flag, quoted; "wrong" where the words do not have it as it is."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag and equals:
            return repr(value)
        if name == flag:
            after = next((j for j in range(i + 1, len(words)) if words[j].startswith("--")), len(words))
            return repr(" ".join(words[i + 1 : after]))
    return "wrong"


def _missing(message: list[str]) -> str:
    """The names in a message, which are indented less than what they mean, with "is" or "are"."""
    depth = min(len(line) - len(line.lstrip()) for line in message[1:])
    names = [line.split()[0] for line in message[1:] if len(line) - len(line.lstrip()) == depth]
    return " and ".join(names) + (" is" if len(names) == 1 else " are")
