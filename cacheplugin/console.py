"""Lines for a person on stderr, each with the program's name."""

import os

PROGRAM = "go-cache-plugin"


def say(text: str) -> None:
    """Write one line to stderr; a stderr that is closed or full loses it."""
    try:
        os.write(2, f"{PROGRAM}: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        pass
