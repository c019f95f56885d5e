"""One client's conversation: its bytes in, its answers out, the put it is in the middle of."""

import os
import time

from ..errors import BodyMismatch
from . import protocol
from .protocol import CHUNK, CLOSE, END, FATAL, GET, PUT, REJECT, Parser, hit_answer, json_text

READ_BYTES = 1 << 16  # what a client gets done in one turn of the loop
MAX_UNSENT_BYTES = 1 << 20  # a client that reads no answers is not read from beyond this
MAX_OUTSTANDING = 4096  # nor one that has so many gets waiting for S3; the go command has one a CPU


class Session:
    """Serves one client of ``front`` on two descriptors (they may be the same socket).

    Answers to what is found locally are written at the end of the turn that read the request;
    those that wait for S3 come through ``transfers``, a Transfers, None where there is no bucket.
    ``counters`` are those that count what the session does.
    """

    def __init__(self, front, in_fd: int, out_fd: int, counters, transfers=None) -> None:
        self.front = front
        self.in_fd, self.out_fd = in_fd, out_fd
        self.counters = counters
        self.transfers = transfers
        self.outstanding = 0  # gets that wait for S3
        self.moves = 0  # how often something came or went
        self.is_full = False  # whether it is not read from for now
        self.closing = None  # ID of the close request, once it came
        self.fault = None  # why the stream was given up, for the user
        self._parser = Parser()
        self._answers = []
        self.ended = False
        self._unsent = b""
        self.waiting = False  # for the client to take what is unsent
        self._writer = None
        self._put = None  # (id, action, output, size) of the put under way
        self._error = None  # why the put under way fails

    def on_readable(self, _=None) -> None:
        """Take one turn: read what is there, handle the requests it completes, answer."""
        try:
            data = os.read(self.in_fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        self.moves += 1
        front = self.front
        latency = front.hit_latency
        begin = time.perf_counter() if latency is not None else 0
        lookup, answers, counters = front.lookup, self._answers, self.counters
        transfers = self.transfers
        used, expected = (None, None) if transfers is None else (transfers.used, transfers.expected)
        hits = hit_bytes = prefetched = 0
        for event in self._parser.feed(data):
            kind = event[0]
            if kind == GET:
                _, number, action = event
                found = lookup(action)
                if found is None:
                    self._miss(number, action)
                    continue
                output, size, put_time, path, mtime = found
                if mtime < front.stale_before or output in front.refreshed:
                    if not front.note_use(action, output):
                        self._miss(number, action)
                        continue
                hits += 1
                hit_bytes += size
                if used is not None:
                    used.append(action)
                    if expected and action in expected:
                        expected.discard(action)
                        prefetched += 1
                if not front.plain_paths:
                    path = json_text(path)
                answers.append(hit_answer(number, output, size, put_time, path))
            elif kind == CHUNK:
                self._put_chunk(event[1])
            elif kind == PUT:
                self._begin_put(*event[1:])
            elif kind == END:
                self._end_put(event[1])
            elif kind == CLOSE:
                self.closing = event[1]
                front.begin_close(self)
            elif kind == REJECT:
                answers.append(protocol.error_answer(event[1], event[2]))
            elif kind == FATAL:
                self.fault = event[1]
        if hits:
            counters.get_requests += hits
            counters.get_hits += hits
            counters.get_local_hit += hits - prefetched
            counters.get_fault_hit += prefetched
            counters.get_hit_bytes += hit_bytes
        self.flush()
        if latency is not None and hits:
            latency.add(time.perf_counter() - begin, hits)
        if self.fault:
            self.end()

    @property
    def is_stalled(self) -> bool:
        """Whether the client is in the middle of something that only it can go on with."""
        return self.waiting or self._put is not None or not self._parser.at_boundary

    def _miss(self, number, action) -> None:
        self.counters.get_requests += 1
        if self.transfers is None:
            self.answer_miss(number)
        else:
            self.transfers.fetch(self, number, action)

    def answer(self, text: str) -> None:
        """Queue an answer; ``flush`` sends it."""
        self._answers.append(text)

    def answer_miss(self, number: int) -> None:
        self.counters.get_misses += 1
        self._answers.append(protocol.miss_answer(number))

    # -- puts --------------------------------------------------------------------------------------

    def _begin_put(self, number, action, output, size) -> None:
        self.counters.put_requests += 1
        self._put = (number, action, output, size)
        try:
            self._writer = self.front.local.writer(action, output, size)
        except OSError as error:
            self._fail_put(f"cannot store it: {error.strerror}")

    def _put_chunk(self, data) -> None:
        if self._writer is not None:
            try:
                self._writer.write(data)
            except BodyMismatch as error:
                self._fail_put(str(error))
            except OSError as error:
                self._fail_put(f"cannot store it: {error.strerror}")

    def _end_put(self, reason) -> None:
        number, action, output, size = self._put
        path = None
        if reason:
            self._fail_put(reason)
        if self._writer is not None:
            time_ns = time.time_ns()
            try:
                path = self._writer.commit(time_ns)
            except BodyMismatch as error:
                self._fail_put(str(error))
            except OSError as error:
                self._fail_put(f"cannot store it: {error.strerror}")
            else:
                self._drop_writer()
        if path is None:
            self.counters.put_errors += 1
            self._answers.append(protocol.error_answer(number, self._error))
        else:
            self.counters.put_bytes += size
            self._answers.append(protocol.put_answer(number, json_text(path)))
            if self.transfers is not None:
                self.transfers.upload(action, output, size, time_ns, path)
        self._put = self._error = None

    def _fail_put(self, reason) -> None:
        self._error = self._error or reason
        self._drop_writer()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    # -- out and the end ---------------------------------------------------------------------------

    def flush(self, _=None) -> None:
        """Write what is queued; what the client does not take now waits until it does."""
        if self._answers:
            if self.front.debug:
                self.front.log_answers(self._answers)
            text = "".join(self._answers).encode()
            self._answers.clear()
            self._unsent = self._unsent + text if self._unsent else text
        if self.out_fd < 0:
            self._unsent = b""
            return
        if self._unsent:
            try:
                self._unsent = self._unsent[os.write(self.out_fd, self._unsent) :]
                self.moves += 1
            except BlockingIOError:
                pass
            except OSError:
                self._unsent = b""
                self.end()
                return
        is_full = len(self._unsent) > MAX_UNSENT_BYTES or self.outstanding > MAX_OUTSTANDING
        if self._unsent or self.waiting or is_full != self.is_full:
            self.waiting, self.is_full = bool(self._unsent), is_full
            self.front.watch_output(self)

    def end(self) -> None:
        """The client is gone, or its stream is lost."""
        if self.ended:
            return
        self.ended = True
        if self._put is not None or not self._parser.at_boundary:
            self.fault = self.fault or "stdin ended in the middle of a request"
        self.abort()
        self.front.session_ended(self)

    def abort(self) -> None:
        """Drop the put under way, and its temporary file."""
        self._drop_writer()
