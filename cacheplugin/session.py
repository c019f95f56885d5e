"""One client's conversation: its bytes in, its answers out, the put it is in the middle of."""
import os
import time

from . import protocol
from .errors import BodyMismatch
from .protocol import CHUNK, CLOSE, END, FATAL, GET, PUT, REJECT, Parser, hit_answer, json_text

READ_BYTES = 1 << 16  # what a client gets done in one turn of the loop
MAX_UNSENT_BYTES = 1 << 20  # a client that reads no answers is not read from beyond this


class Session:
    """Serves one client of ``front`` on two descriptors (they may be the same socket).

    Answers to what is found locally are written at the end of the turn that read the request;
    those that wait for S3 come through ``answer_fetched``.
    """

    def __init__(self, front, in_fd: int, out_fd: int) -> None:
        self.front = front
        self.in_fd, self.out_fd = in_fd, out_fd
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
        front = self.front
        lookup, answers, counters = front.lookup, self._answers, front.counters
        uplink = front.uplink
        used, expected = (None, None) if uplink is None else (uplink.used, uplink.expected)
        hits = hit_bytes = prefetched = 0
        for event in self._parser.feed(data):
            kind = event[0]
            if kind == GET:
                _, number, action = event
                found = lookup(action)
                if found is None:
                    counters.get_requests += 1
                    front.fetch(self, number, action)
                    continue
                output, size, put_time, path, mtime = found
                if mtime < front.stale_before or output in front.refreshed:
                    if not front.note_use(action, output):
                        counters.get_requests += 1
                        front.fetch(self, number, action)
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
        if self.fault:
            self.end()

    def answer(self, text: str) -> None:
        """Queue an answer; ``flush`` sends it."""
        self._answers.append(text)

    def answer_miss(self, number: int) -> None:
        self.front.counters.get_misses += 1
        self._answers.append(protocol.miss_answer(number))

    # -- puts --------------------------------------------------------------------------------------

    def _begin_put(self, number, action, output, size) -> None:
        self.front.counters.put_requests += 1
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
            self.front.counters.put_errors += 1
            self._answers.append(protocol.error_answer(number, self._error))
        else:
            self.front.counters.put_bytes += size
            self._answers.append(protocol.put_answer(number, json_text(path)))
            self.front.upload(action, output, size, time_ns, path)
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
        elif not self._unsent:
            return
        if self.out_fd < 0:
            self._unsent = b""
            return
        try:
            self._unsent = self._unsent[os.write(self.out_fd, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""
            self.end()
            return
        if self._unsent or self.waiting:
            self.waiting = bool(self._unsent)
            self.front.watch_output(self, self.waiting, len(self._unsent) > MAX_UNSENT_BYTES)

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
