"""Writes the file of answers for the bare responder: one line for each action of a store.

Usage: python -m benchmarks.answers CACHE_DIR FILE
"""

import os
import sys
from base64 import b64encode

from cacheplugin.front.protocol import hit_answer, json_text
from cacheplugin.store.tree import Store


def actions(cache_dir: str) -> list:
    """Every action id of a store, as hex, sorted."""
    return sorted(
        name
        for directory in os.scandir(f"{cache_dir}/action")
        for name in os.listdir(directory.path)
    )


def write(cache_dir: str, path: str) -> None:
    """Write the answers for all actions of the store at ``cache_dir`` to the file ``path``."""
    store = Store(cache_dir)
    with open(path, "w") as file:
        for action in actions(cache_dir):
            output, size, put_time, body, _ = store.lookup(action)
            answer = hit_answer(0, output, size, put_time, json_text(body))
            encoded = b64encode(bytes.fromhex(action)).decode()
            file.write(f"{encoded} {answer.removeprefix('{' + chr(34) + 'ID' + chr(34) + ':0')}")


if __name__ == "__main__":
    write(*sys.argv[1:])
