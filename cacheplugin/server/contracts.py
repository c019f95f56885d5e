"""What the parts of a server use of the Server. Imported for type checking only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from ..front.pool_access import PoolAccess
    from ..ipc.web_messages import ServerSnapshot
    from ..loop import Loop
    from ..options import Options
    from ..store.crash_safety import OpenMarker
    from ..store.tree import Store


class AcceptorServer(Protocol):
    """What Acceptor uses: a server that begins sessions. Server implements it."""

    @property
    def loop(self) -> Loop: ...

    @property
    def options(self) -> Options: ...

    @property
    def client_count(self) -> int:
        """The number of sessions."""

    def own_scopes(self) -> Sequence[str]:
        """The scopes of clients that name none."""

    def begin_session(
        self,
        way: str,
        fds: tuple[int, int],
        find_scopes: Callable[[], Sequence[str]],
        control: socket.socket | None = None,
        wants_summary: bool = False,
    ) -> None:
        """Begin a session; see Server.begin_session."""

    def restart_idle_timer(self) -> None:
        """Count --idle-exit anew, as a client came or went."""


class MaintenanceServer(Protocol):
    """What Maintenance uses: a server with a store and perhaps a bucket. Server implements it."""

    store: Store

    @property
    def loop(self) -> Loop: ...

    @property
    def options(self) -> Options: ...

    @property
    def pool_access(self) -> PoolAccess | None: ...

    @property
    def writable(self) -> bool: ...

    @property
    def is_stopping(self) -> bool: ...

    @property
    def is_idle(self) -> bool:
        """Whether there is neither a client nor an upload of an ended session."""

    @property
    def has_marker(self) -> bool:
        """Whether take_marker would return one."""

    def take_marker(self) -> OpenMarker | None:
        """The OpenMarker of what was written until now, for the caller to close."""

    def mark_open(self) -> None:
        """Make an OpenMarker for what is written from now on."""

    def trust_store(self) -> None:
        """Serve entries that were suspect, as they have been checked."""


class HttpProcessServer(Protocol):
    """What HttpProcess uses: a server that the HTTP process asks. Server implements it."""

    @property
    def loop(self) -> Loop: ...

    @property
    def options(self) -> Options: ...

    @property
    def pool_access(self) -> PoolAccess | None: ...

    @property
    def is_cut_off(self) -> bool:
        """Whether --stop-timeout is over, so that new uploads are refused."""

    def snapshot(self) -> ServerSnapshot:
        """The server's state now."""

    def restart_idle_timer(self) -> None:
        """Count --idle-exit anew, as the HTTP process became busy or idle."""
