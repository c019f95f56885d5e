"""The supervisor's end of a worker process."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

from .worker import work

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess
    from typing import Any

    from ..ipc import jobs
    from ..options import Options
    from ..remote.layouts import Remote


class Worker:
    """A worker process; ``tasks`` are its unfinished tasks by number."""

    def __init__(self, process: ForkProcess, connection: Connection[Any, Any]) -> None:
        self.process = process
        self.connection = connection
        self.tasks: dict[int, jobs.Task] = {}


def fork_worker(remote: Remote | None, options: Options, inherited: Iterable[int]) -> Worker:
    """Start a worker, which closes the descriptors ``inherited``. Raises one of LOCAL_TROUBLE."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=work, args=(theirs, remote, options, [*inherited, ours.fileno()]), daemon=True
    )
    try:
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Worker(process, ours)
