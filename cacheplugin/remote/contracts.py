"""Contracts of the pool with the plans of layouts, and of layouts with the bucket.

For type checkers only: import this module only under TYPE_CHECKING.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from ..ipc import jobs
    from .body_reader import Body
    from .s3 import Listed


class TaskOwner(Protocol):
    """Gets the results of its tasks.

    Implemented by every plan and by the file jobs of pool.supervisor; used by the Supervisor.
    """

    def done(self, task: jobs.Task, result: jobs.TaskResult) -> None:
        """Called once for each submitted task, after ``submit`` has returned."""


class PlanHost(Protocol):
    """Has workers do tasks, and sends results to the front.

    Implemented by pool.supervisor.Supervisor; used by the plans.
    """

    def submit(self, owner: TaskOwner, task: jobs.Task) -> None:
        """Queue a task for a worker; ``owner.done`` gets its result."""

    def report(self, message: jobs.Message) -> None:
        """Send a result or a notice to the front."""


class Bucket(Protocol):
    """What layouts, prune and stats use of a bucket.

    s3.Bucket implements it and documents each method, FakeBucket implements it for unit tests. All
    methods raise RemoteError.
    """

    def read(self, key: str, limit: int) -> bytes: ...

    def read_all(self, key: str, limit: int) -> bytes: ...

    def open(self, key: str) -> AbstractContextManager[tuple[int, Body]]: ...

    def open_range(self, key: str, start: int, length: int) -> AbstractContextManager[Body]: ...

    def list(self, prefix: str, limit: int = ...) -> Sequence[Listed]: ...

    def list_all(self, prefix: str) -> Iterator[Listed]: ...

    def now_s(self) -> float: ...

    def delete(self, keys: Iterable[str]) -> None: ...

    def exists(self, key: str) -> bool: ...

    def write(self, key: str, data: bytes) -> None: ...

    def write_new(self, key: str, data: bytes) -> bool: ...

    def read_version(self, key: str, limit: int) -> tuple[bytes, str] | None: ...

    def write_over(self, key: str, data: bytes, version: str | None) -> bool: ...

    def download(self, key: str, file: BinaryIO, size: int) -> None: ...

    def upload_file(self, key: str, source: str | Body) -> None: ...

    def abort_uploads(self, prefix: str, is_wanted: Callable[[str, float], bool]) -> None: ...
