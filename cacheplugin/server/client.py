"""The session of one client of a server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..console import PROGRAM
from ..front.session import Session
from . import fd_passing

if TYPE_CHECKING:
    import socket

    from ..front.contracts import SessionHost
    from ..front.transfers import Transfers
    from ..metrics import Counters

log = logging.getLogger(__name__)

MAX_STALLS = 4  # checks in the time that a client may stall


class Client(Session):
    """A Session that came to a server.

    ``control`` is the socket to its connect process, None for a TCP client; ``wants_summary``:
    connect prints the counters at the end.
    """

    def __init__(
        self,
        front: SessionHost,
        fds: tuple[int, int],
        counters: Counters,
        transfers: Transfers | None,
        control: socket.socket | None,
        wants_summary: bool,
    ) -> None:
        super().__init__(front, *fds, counters, transfers)
        self.control = control
        self._wants_summary = wants_summary
        self._stalls = 0
        self._io_count_seen = -1

    def on_readable(self, _events: int = 0) -> None:
        """As Session.on_readable, but an unexpected error ends this session alone."""
        try:
            super().on_readable()
        except Exception as error:
            log.exception("unexpected error in a session, which ends; please report it")
            self.fault = f"unexpected error of the server: {error!r}; see the server's log"
            self.end()

    def connect_has_died(self) -> bool:
        """Whether the connect process has died, once ``control`` is readable: it sends nothing."""
        if self.control is None:
            return False
        try:
            return not self.control.recv(fd_passing.MAX_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def check_stall(self) -> bool:
        """Whether the client has stalled for MAX_STALLS checks.

        A client stalls if it neither goes on with a request nor reads answers.
        """
        if self.is_stalled and self.io_count == self._io_count_seen:
            self._stalls += 1
        else:
            self._stalls, self._io_count_seen = 0, self.io_count
        return self._stalls >= MAX_STALLS

    def tell_end(self, status: int) -> None:
        """Have the connect process exit with ``status``, after the fault and the counters."""
        if self.control is not None:
            text = f"{PROGRAM}: {self.fault}\n" if self.fault else ""
            if self._wants_summary:
                text += self.counters.summary()
            fd_passing.send_end(self.control, text, status)
            self.control.close()
