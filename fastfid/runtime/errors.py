"""Words of errors that other libraries raise."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
