"""What the trainer's commands print."""

import sys

from tqdm import tqdm

from fastfid.runtime.terminal import printable
from sit_rl.ranks.process_group import is_main


def say(text: str) -> None:
    """Print on the main rank at once, without breaking a progress bar; control characters become escapes.

    Names of files may have them.
    """
    if is_main() and sys.stdout is not None:  # None: Python's value for a closed descriptor
        tqdm.write(printable(text))
        sys.stdout.flush()
