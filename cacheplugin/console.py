"""Messages for the user on stderr, each one line with the program's name."""

import os

PROGRAM = "go-cache-plugin"


def say(text: str) -> None:
    """Write one line to stderr. The line is lost if stderr is closed or its pipe is full."""
    try:
        os.write(2, f"{PROGRAM}: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        pass
