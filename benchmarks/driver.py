"""A client of the GOCACHEPROG protocol that measures: starts a plugin, sends gets and puts."""

import os
import subprocess
import time
from base64 import b64encode


class Plugin:
    """A running plugin that has sent its hello line.

    ``command`` is a list of arguments. ``cpus``, a set of CPU numbers, pins the plugin and this
    process. Raises EOFError if the plugin ends before its hello line.
    """

    def __init__(self, command, env=None, cpus=None) -> None:
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0
        )
        self._out = self.process.stdin.fileno()
        self._in = self.process.stdout.fileno()
        self._rest = b""
        self._number = 0
        self._answers(1)

    def _answers(self, count) -> list:
        """At least ``count`` answers, as lines without the line feed; raises EOFError."""
        lines = []
        while len(lines) < count:
            data = os.read(self._in, 1 << 16)
            if not data:
                raise EOFError("the plugin ended")
            *whole, self._rest = (self._rest + data).split(b"\n")
            lines += whole
        return lines

    def gets(self, actions, in_flight: int) -> float:
        """Seconds to get all ``actions`` (hex), with ``in_flight`` requests at once.

        Raises ValueError for an answer that is not a hit, EOFError if the plugin ends.
        """
        requests = [
            b'{"ID":%d,"Command":"get","ActionID":"%b"}\n\n'
            % (self._number + at, b64encode(bytes.fromhex(action)))
            for at, action in enumerate(actions, 1)
        ]
        self._number += len(requests)
        begin = time.perf_counter()
        os.write(self._out, b"".join(requests[:in_flight]))
        sent, received = min(in_flight, len(requests)), 0
        while received < len(requests):
            answers = self._answers(1)
            received += len(answers)
            batch = requests[sent : sent + len(answers)]
            if batch:
                os.write(self._out, b"".join(batch))
                sent += len(batch)
            if any(b'"DiskPath"' not in answer for answer in answers):
                raise ValueError(f"no hit: {answers}")
        return time.perf_counter() - begin

    def put(self, action: str, output: str, size: int, chunks) -> bytes:
        """Send one put whose body is ``chunks`` (a list of base64 bytes); returns the answer."""
        self._number += 1
        header = b'{"ID":%d,"Command":"put","ActionID":"%b","OutputID":"%b","BodySize":%d}\n\n"' % (
            self._number,
            b64encode(bytes.fromhex(action)),
            b64encode(bytes.fromhex(output)),
            size,
        )
        self.process.stdin.write(header)
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._out, view) :]
        self.process.stdin.write(b'"\n')
        return self._answers(1)[0]

    def resident_bytes(self, peak: bool = False) -> int:
        """Resident memory of the plugin's first process, now or at its peak (Linux)."""
        key = "VmHWM:" if peak else "VmRSS:"
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

    def close(self) -> None:
        """Send close, wait for its answer and for the end of the process."""
        self._number += 1
        os.write(self._out, b'{"ID":%d,"Command":"close"}\n\n' % self._number)
        self._answers(1)
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
