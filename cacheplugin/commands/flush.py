"""The command ``flush``: uploads the entries that earlier sessions left in the spool."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from .. import log
from ..console import say
from ..errors import UsageError, is_exhausted, reason_of
from ..pool.uploader import Uploader, UploaderLock, lock_until
from ..store import spool
from ..store.tree import Store
from .progress import Progress

if TYPE_CHECKING:
    from ..options import Options

EXIT_REMAINS = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT


def run(options: Options) -> int:
    """Upload and print the result; return 0, or 1 if entries remain. Raises UsageError."""
    root = options.cache_dir
    if not os.path.exists(root):
        # No failure: a CI job that built nothing ends with a flush as well.
        sys.stdout.write(f"{root} does not exist: nothing to upload\n")
        return 0
    if not os.path.isdir(root):
        raise UsageError(f"the cache directory {root} is not a directory: see --cache-dir")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # main.py ignores it, for the front
    os.umask(0o022)
    log.setup(options)
    try:
        uploader = _upload(options)
    except TimeoutError:
        sys.stdout.write(
            "another uploader or session did not finish within --timeout: try again later\n"
        )
        return EXIT_REMAINS
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        if is_exhausted(error):
            raise  # the directory is not to blame
        raise UsageError(f"the cache directory {root} cannot be used: {reason_of(error)}") from None
    remain = spool.count_pending(Store(root))
    sys.stdout.write(
        f"{uploader.uploaded} entries uploaded, {uploader.dropped} dropped (their bodies are"
        f" damaged or gone), {remain} remain\n"
    )
    for line in spool.describe_foreign(root):
        say(line)
    if not remain:
        return 0
    if uploader.failure:
        say(f"the last upload failed: {uploader.failure}")
    for line in spool.describe(Store(root)):
        say(line)
    return EXIT_REMAINS


def _upload(options: Options) -> Uploader:
    """Upload what is in the spool. Raises TimeoutError, OSError, KeyboardInterrupt."""
    deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
    progress = Progress()
    try:
        with UploaderLock(options.cache_dir, deadline):
            uploader = Uploader(
                options,
                deadline,
                on_progress=lambda done, left: progress.show("uploading", done, done + left),
                before_print=progress.clear,
            )
            for journal in spool.ending_journals(options.cache_dir):
                progress.clear()
                say("waiting for a session that still uploads")
                lock_until(journal, deadline)
                os.close(journal)
            if not options.read_only:
                uploader.run()
    finally:
        progress.clear()
    return uploader
