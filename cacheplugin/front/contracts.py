"""What the parts of the front use of each other. For type checkers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..ipc import jobs
    from ..loop import Loop
    from ..metrics import Counters, Histogram
    from ..options import Options
    from ..pool.client import PoolClient
    from ..store.cache import LocalCache
    from ..store.tree import Hit, Store

    # Of an action, as Store.lookup.
    Lookup = Callable[[str], Hit | None]


class StoreUser(Protocol):
    """The store of a process, as sessions and their transfers look into it.

    Implemented by front.Front; used by Session and Transfers.
    """

    options: Options
    store: Store
    lookup: Lookup
    stale_before: float

    def note_use(self, action: str, output: str) -> bool:
        """Set the mtimes of an entry to now; False when its body was pruned."""


class SessionHost(StoreUser, Protocol):
    """The process that a Session runs in. Implemented by front.Front; used by Session."""

    hit_latency: Histogram | None
    refreshed: set[str]
    plain_paths: bool
    debug: int

    @property
    def local(self) -> LocalCache:
        """The writing half of the store."""

    def begin_close(self, session: HostedSession) -> None:
        """The client has sent close; ``session.close_id`` is the request to answer."""

    def session_ended(self, session: HostedSession) -> None:
        """The client is gone, or its stream cannot be read on; there is no close to answer."""

    def watch_output(self, session: HostedSession) -> None:
        """``session.has_unsent`` or ``session.is_paused`` has changed."""

    def log_answers(self, answers: list[str]) -> None:
        """Log answers before they are sent (--debug 1)."""


class HostedSession(Protocol):
    """One client of a process. Implemented by Session; used by Front and its subclasses."""

    in_fd: int
    out_fd: int
    close_id: int
    fault: str | None
    ended: bool
    has_unsent: bool
    is_paused: bool

    def on_readable(self, _events: int = 0) -> None:
        """Read and handle what the client sent."""

    def flush(self, _events: int = 0) -> None:
        """Write queued answers."""

    def answer(self, text: str) -> None:
        """Queue an answer."""

    def abort(self) -> None:
        """Discard the put under way."""


class WaitingSession(Protocol):
    """A session with gets that wait for S3. Implemented by Session; used by Transfers."""

    outstanding: int

    def answer(self, text: str) -> None:
        """Queue an answer."""

    def answer_miss(self, number: int) -> None:
        """Queue the answer to a get that missed, and count the miss."""

    def flush(self, _events: int = 0) -> None:
        """Write queued answers."""


class PoolHost(StoreUser, Protocol):
    """The process that uses a pool. Implemented by front.Front; used by PoolAccess."""

    counters: Counters
    loop: Loop
    writable: bool

    @property
    def local(self) -> LocalCache:
        """The writing half of the store."""

    def mark_open(self) -> None:
        """Note on disk that this process or its workers write to the store."""

    def warn(self, text: str) -> None:
        """Print one line to stderr."""


class PoolSession(Protocol):
    """One session as the pool knows it. Implemented by Transfers; used by PoolAccess."""

    counters: Counters

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the session, its own first."""

    def on_expected(self, message: jobs.Expected) -> None:
        """Note which actions the bundles of the session hold."""


class TransferHost(Protocol):
    """The way to S3 that sessions share. Implemented by PoolAccess; used by Transfers."""

    usable: bool
    damaged: set[str]
    upload_failed: bool
    left_spooled: bool

    @property
    def front(self) -> StoreUser:
        """The process and its store."""

    @property
    def keeps_puts(self) -> bool:
        """Whether the spool takes puts for the bucket."""

    @property
    def uploads_wanted(self) -> bool:
        """Whether puts are to be uploaded by this process."""

    def pool(self) -> PoolClient | None:
        """The pool, started if there is none; None while the bucket is not used."""

    def begin(self, pool: PoolClient, session: PoolSession) -> int:
        """Announce a session to ``pool``; returns its number there."""

    def give_up(self, error: Exception) -> None:
        """Stop using the bucket for a while, because of an error in this process; warn of it."""

    # Any: each kind of job has its own kind of result.
    def expect(self, number: int, on_result: Callable[[Any], None]) -> None:
        """Have ``on_result(result)`` called with the result of job ``number``."""
