"""``flush``: upload what earlier sessions left in the spool."""

import os
import signal
import sys
import time

from .. import log
from ..console import say
from ..errors import UsageError, reason_of
from ..pool.uploader import Uploader, UploaderLock, lock_until
from ..store import spool
from ..store.tree import Store
from .progress import Progress


def run(options) -> int:
    """``go-cache-plugin flush``; exit status 1 where something remains."""
    if not os.path.exists(options.cache_dir):
        sys.stdout.write(f"{options.cache_dir} does not exist: nothing to upload\n")
        return 0  # a job that built nothing ends with a flush as well
    if not os.path.isdir(options.cache_dir):
        raise UsageError(f"the cache directory {options.cache_dir} is no directory")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # main.py ignores it, for the front
    os.umask(0o022)
    log.setup(options)
    deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
    progress = Progress()
    try:
        with UploaderLock(options.cache_dir, deadline):
            uploader = Uploader(
                options,
                deadline,
                on_progress=lambda done, left: progress.show("uploading", done, done + left),
            )
            for journal in spool.ending_journals(options.cache_dir):
                say("waiting for a session that still uploads")
                lock_until(journal, deadline)
                os.close(journal)
            if not options.read_only:
                uploader.run()
    except TimeoutError:
        sys.stdout.write("another uploader or session is at work and was not done in time\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        reason = reason_of(error)
        raise UsageError(
            f"the cache directory {options.cache_dir} cannot be used: {reason}"
        ) from None
    finally:
        progress.clear()
    remain = spool.count_pending(Store(options.cache_dir))
    sys.stdout.write(
        f"{uploader.uploaded} entries uploaded, {uploader.dropped} dropped (their bodies are damaged "
        f"or gone), {remain} remain\n"
    )
    if not remain:
        return 0
    for line in spool.describe(Store(options.cache_dir)):
        say(line)
    return 1
