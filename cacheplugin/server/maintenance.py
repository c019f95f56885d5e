"""The maintenance of a server, once a minute: leftover uploads, prunes, durability.

A check after an unclean shutdown and a prune read much, so they run in a process of their own.
Its ``main`` is here too.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from _thread import start_new_thread
from typing import TYPE_CHECKING

from ..errors import reason_of
from ..ipc.spawn import spawn_apart
from ..options import Options
from ..store.crash_safety import settle
from ..store.prune import prune_at_close

if TYPE_CHECKING:
    from .contracts import MaintenanceServer

log = logging.getLogger(__name__)

_EVERY_S = 60
_PRUNE_S = 3600
_MARKER_S = 3600
_UPLOADER, _PRUNER = "uploader", "pruner"


class Maintenance:
    """The maintenance of ``server``."""

    def __init__(self, server: MaintenanceServer) -> None:
        self._server = server
        self._marker_since = time.monotonic()  # when there was no marker, or it was renewed
        self._pruned_at: float | None = None  # monotonic seconds
        self._processes: dict[int, str] = {}  # _UPLOADER or _PRUNER, by process id

    def run_every_minute(self) -> None:
        """Do what is due now, and again each minute."""
        self._server.loop.after(_EVERY_S, self.run_every_minute)
        self._reap()
        now = time.monotonic()
        self._start_uploader()
        self._start_pruner(now)
        self._renew_marker(now)

    def _start_uploader(self) -> None:
        """Start an uploader for what dead sessions left in the spool, unless one runs."""
        pool_access = self._server.pool_access
        if pool_access is None or self._server.is_stopping or _UPLOADER in self._processes.values():
            return
        process_id = pool_access.start_uploader()
        if process_id is not None:
            self._processes[process_id] = _UPLOADER

    def _start_pruner(self, now: float) -> None:
        """Start a process that checks suspects and prunes, if that is due and none runs."""
        server, options = self._server, self._server.options
        is_due = (options.expiry_s or options.max_size_bytes) and (
            self._pruned_at is None or now - self._pruned_at >= _PRUNE_S
        )
        if not server.writable or not (is_due or server.store.is_checked):
            return
        if _PRUNER in self._processes.values():
            return
        self._pruned_at = now
        try:
            process_id = spawn_apart(
                "cacheplugin.server.maintenance", json.dumps(options.as_dict()), null_fds=(0, 1)
            )
            self._processes[process_id] = _PRUNER
        except OSError as error:
            log.warning(
                "cannot start the process that prunes %s: %s; trying again later",
                options.cache_dir,
                reason_of(error),
            )

    def _reap(self) -> None:
        for process_id, name in [*self._processes.items()]:
            done, status = os.waitpid(process_id, os.WNOHANG)
            if done:
                del self._processes[process_id]
                if name == _PRUNER and status == 0:
                    self._server.trust_store()

    def _renew_marker(self, now: float) -> None:
        """Make durable what was written until now, so that a power cut does not make it suspect.

        Done when the server is idle, and each hour: closing a marker syncs the disk.
        """
        server = self._server
        if not server.has_marker:
            self._marker_since = now
            return
        is_idle = server.is_idle
        if is_idle or now - self._marker_since >= _MARKER_S:
            marker = server.take_marker()
            if not is_idle:
                server.mark_open()
            self._marker_since = now
            if marker is not None:
                start_new_thread(marker.close, ())  # waits for the disk


def main(text: str) -> None:
    """Check suspects and prune; ``text``: the fields of Options as JSON.

    Runs in a process of its own, and exits with status 0 if everything was checked, else 1.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    options = Options(**json.loads(text))
    status = 0
    try:
        settle(options.cache_dir)
        if options.expiry_s or options.max_size_bytes:
            prune_at_close(options)
    except OSError:
        status = 1  # the server tries again
    os._exit(status)
