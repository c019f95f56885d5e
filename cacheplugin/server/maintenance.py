"""What a server has done beside its work, and direct mode when nobody waits any more.

The check after an unclean shutdown and prunes read much, so they have a process of their own, whose
``main`` is here too.
"""

import json
import logging
import os
import signal
import time
from _thread import start_new_thread

from ..errors import reason_of
from ..ipc.spawn import spawn_apart
from ..options import Options
from ..store.crash_safety import settle
from ..store.prune import prune_at_close

log = logging.getLogger(__name__)

_EVERY_S = 60
_PRUNE_S = 3600
_MARKER_S = 3600


class Maintenance:
    """Sees to it for ``server``, once a minute from ``do`` on."""

    def __init__(self, server) -> None:
        self._server = server
        self._marker_from = self._pruned_at = None  # monotonic seconds
        self._helpers = {}  # id of a process: what it is

    def do(self) -> None:
        """Every minute: what direct mode does at the end of a session."""
        server = self._server
        server.loop.after(_EVERY_S, self.do)
        self._reap()
        running = self._helpers.values()
        if server.pool_access is not None and "uploader" not in running and not server.is_stopping:
            process_id = server.pool_access.start_uploader()
            if process_id is not None:
                self._helpers[process_id] = "uploader"
        now = time.monotonic()
        prunes = server.options.expiry_s or server.options.max_size_bytes
        is_due = prunes and (self._pruned_at is None or now - self._pruned_at >= _PRUNE_S)
        if server.writable and "upkeep" not in running and (is_due or server.store.is_checked):
            self._pruned_at = now
            try:
                fields = json.dumps(server.options.as_dict())
                process_id = spawn_apart("cacheplugin.server.maintenance", fields, null_fds=(0, 1))
                self._helpers[process_id] = "upkeep"
            except OSError as error:
                log.warning("no prune: %s", reason_of(error))
        self._renew_marker(now)

    def _reap(self) -> None:
        for process_id, name in [*self._helpers.items()]:
            done, status = os.waitpid(process_id, os.WNOHANG)
            if done:
                del self._helpers[process_id]
                if name == "upkeep" and status == 0:
                    self._server.trust_store()

    def _renew_marker(self, now) -> None:
        """Have what was written until now made durable, so that no power cut makes it suspect."""
        server = self._server
        if not server.has_marker:
            self._marker_from = now
            return
        is_idle = server.is_idle
        if is_idle or now - self._marker_from >= _MARKER_S:
            marker = server.take_marker()
            if not is_idle:
                server.mark_open()
            self._marker_from = now
            start_new_thread(marker.close, ())  # it waits for the disk


def main(text: str) -> None:
    """The process's; ``text``: the fields of Options as JSON. Exit status 0: all that was to do is done."""
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
        status = 1  # it is tried again
    os._exit(status)
