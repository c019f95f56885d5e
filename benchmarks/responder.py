"""The bare responder, a yardstick: the least that any Python plugin can cost.

It answers gets from a dict that it loads before: no store, no checks, no options. Usage:
``GOCACHEPROG="python benchmarks/responder.py ANSWERS"``. ANSWERS holds a line for each action,
``<base64 action id> <rest of the answer's JSON after the ID>`` (see benchmarks/answers.py).
"""

import os
import sys


def main() -> None:
    """Answer requests on stdin until it ends."""
    os.write(1, b'{"ID":0,"KnownCommands":["get","put","close"]}\n')
    with open(sys.argv[1], "rb") as file:
        answers = dict(line.rstrip(b"\n").split(b" ", 1) for line in file)
    pending = b""
    while data := os.read(0, 65536):
        *lines, pending = (pending + data).split(b"\n")
        out = []
        for line in lines:
            if not line:
                continue
            number, _, rest = line[6:].partition(b",")
            action = rest[rest.rfind(b":") + 2 : -2]
            if rest.startswith(b'"Command":"close"'):
                out.append(b'{"ID":%b}\n' % number.rstrip(b"}"))
            else:
                out.append(b'{"ID":%b%b' % (number, answers.get(action, b',"Miss":true}')) + b"\n")
        os.write(1, b"".join(out))


if __name__ == "__main__":
    main()
