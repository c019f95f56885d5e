"""One client's session: reads its requests, queues and writes its answers, receives its puts."""

import os
import time

from ..errors import LOCAL_TROUBLE, BodyMismatch, reason_of
from . import protocol
from .protocol import CHUNK, CLOSE, END, FATAL, GET, PUT, REJECT, Parser, hit_answer, json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..metrics import Counters
    from ..store.cache import EntryWriter
    from .contracts import SessionHost
    from .transfers import Transfers

READ_BYTES = 1 << 16  # read from a client in one turn of the loop
MAX_UNSENT_BYTES = 1 << 20  # a client with more unread answers is not read from
MAX_OUTSTANDING = 4096  # nor one with more gets that wait for S3; the go command has one per CPU


class _Put:
    """The put under way. ``writer`` is None before it is opened and once the put has failed."""

    def __init__(self, number: int, action: str, output: str, size: int) -> None:
        self.number, self.action, self.output, self.size = number, action, output, size
        self.writer: EntryWriter | None = None
        self.reason = ""  # why the put failed: the first of several reasons

    def fail(self, error: "str | Exception") -> None:
        """Note why the put fails, and discard its temporary file."""
        if isinstance(error, OSError):
            error = f"cannot store the output: {error.strerror}"
        elif isinstance(error, LOCAL_TROUBLE):
            error = f"cannot store the output: {reason_of(error)}"
        self.reason = self.reason or str(error)
        self.discard()

    def discard(self) -> None:
        if self.writer is not None:
            self.writer.discard()
            self.writer = None


class Session:
    """Serves one client of ``front`` on two descriptors, which may be the same socket.

    Answers to local hits are written at the end of the turn that read the requests. Answers that
    wait for S3 come through ``transfers``, which is None without a bucket. ``counters`` count what
    the session does.
    """

    def __init__(
        self,
        front: "SessionHost",
        in_fd: int,
        out_fd: int,
        counters: "Counters",
        transfers: "Transfers | None" = None,
    ) -> None:
        self.front = front
        self.in_fd, self.out_fd = in_fd, out_fd
        self.counters = counters
        self.transfers = transfers
        self.outstanding = 0  # gets that wait for S3
        self.io_count = 0  # successful reads and writes
        self.is_paused = False  # not read from until the client reads answers or S3 answers gets
        self.close_id = 0  # ID of the close request, once it has come
        self.fault: str | None = None  # why the stream cannot be read on, for the user
        self.ended = False
        self.has_unsent = False  # the client has not taken all answers; set by flush
        self._parser = Parser()
        self._answers: list[str] = []
        self._unsent = b""
        self._put: _Put | None = None

    # Complex, because it does not call a method for each get: that makes a hit 3 to 4 % slower
    # (0.5 of 15 microseconds), as totals and fields cannot be kept in local variables then.
    def on_readable(self, _events: int = 0) -> None:  # noqa: C901
        """Take one turn: read once, handle the requests that are complete, write the answers."""
        try:
            data = os.read(self.in_fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        self.io_count += 1
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
                if (mtime < front.stale_before or output in front.refreshed) and (
                    not front.note_use(action, output)
                ):
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
                self.close_id = event[1]
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
        """Whether only the client can go on: it sends a request, or has to read answers."""
        return self.has_unsent or self._put is not None or not self._parser.at_boundary

    def _miss(self, number: int, action: str) -> None:
        self.counters.get_requests += 1
        if self.transfers is None:
            self.answer_miss(number)
        else:
            self.transfers.fetch(self, number, action)

    def answer(self, text: str) -> None:
        """Queue an answer; ``flush`` sends it."""
        self._answers.append(text)

    def answer_miss(self, number: int) -> None:
        """Queue the answer to a get that missed, and count the miss."""
        self.counters.get_misses += 1
        self._answers.append(protocol.miss_answer(number))

    # -- puts --------------------------------------------------------------------------------------

    def _begin_put(self, number: int, action: str, output: str, size: int) -> None:
        self.counters.put_requests += 1
        self._put = put = _Put(number, action, output, size)
        try:
            put.writer = self.front.local.writer(action, output, size)
        except LOCAL_TROUBLE as error:
            put.fail(error)

    def _put_chunk(self, data: bytes) -> None:
        put = self._put
        if put is not None and put.writer is not None:
            try:
                put.writer.write(data)
            except (BodyMismatch, *LOCAL_TROUBLE) as error:
                put.fail(error)

    def _end_put(self, reason: "str | None") -> None:
        """Publish the entry, unless the put has failed or ``reason`` says why its body is wrong."""
        put, self._put = self._put, None
        if put is None:
            return  # does not happen: the parser returns END only after PUT
        path = None
        if reason:
            put.fail(reason)
        if put.writer is not None:
            time_ns = time.time_ns()
            try:
                path = put.writer.commit(time_ns)
            except (BodyMismatch, *LOCAL_TROUBLE) as error:
                put.fail(error)
        if path is None:
            self.counters.put_errors += 1
            self._answers.append(protocol.error_answer(put.number, put.reason))
            return
        put.discard()
        self.counters.put_bytes += put.size
        self._answers.append(protocol.put_answer(put.number, json_text(path)))
        if self.transfers is not None:
            self.transfers.upload(put.action, put.output, put.size, time_ns, path)

    # -- answers and the end -----------------------------------------------------------------------

    def flush(self, _events: int = 0) -> None:
        """Write queued answers; keep what the client does not take now for the next call."""
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
                self.io_count += 1
            except BlockingIOError:
                pass
            except OSError:
                self._unsent = b""
                self.end()
                return
        is_paused = len(self._unsent) > MAX_UNSENT_BYTES or self.outstanding > MAX_OUTSTANDING
        if self._unsent or self.has_unsent or is_paused != self.is_paused:
            self.has_unsent, self.is_paused = bool(self._unsent), is_paused
            self.front.watch_output(self)

    def end(self) -> None:
        """End the session: the client is gone, or its stream cannot be read on."""
        if self.ended:
            return
        self.ended = True
        if self._put is not None or not self._parser.at_boundary:
            self.fault = self.fault or "stdin ended in the middle of a request"
        self.abort()
        self.front.session_ended(self)

    def abort(self) -> None:
        """Discard the put under way, and its temporary file."""
        if self._put is not None:
            self._put.discard()
