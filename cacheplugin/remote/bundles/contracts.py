"""Types that the parts of the bundles layout need of each other, for type checkers only.

Import this module only under TYPE_CHECKING.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from ...ipc import jobs

R = TypeVar("R", bound=jobs.TaskResult)
R_co = TypeVar("R_co", covariant=True, bound=jobs.TaskResult)


class Entry(Protocol):
    """An entry whose body is a local file. store.spool.Entry is one, BundleEncoder reads it."""

    action: str
    output: str
    size: int
    time_ns: int
    path: str


class TaskOf(Protocol[R_co]):
    """A task whose result is an R. The task messages of ipc/jobs.py implement it."""

    @property
    def number(self) -> int: ...

    def failed(self, status: str, reason: str = "") -> R_co: ...


class Host(Protocol):
    """What Fetching and Uploading use of their plan. BundlesPlan implements it."""

    def next_number(self) -> int:
        """The number of a new task."""

    def submit(self, task: TaskOf[R], on_result: Callable[[R], None]) -> None:
        """Have a worker do a task, and call ``on_result`` with its result later."""

    def report(self, message: jobs.Message) -> None:
        """Send a message to the front."""

    def transferred(self, received: int, sent: int, damaged: int) -> None:
        """Report bytes over the network, and how many damaged things no get was waiting for."""

    def not_in_bundles(self, job: jobs.FetchJob, status: str, reason: str) -> bool:
        """Look for an entry in the objects layout.

        Returns False, and answers the job with ``status``, if the bucket does not hold that layout.
        """

    def uploaded(self, job: jobs.UploadJob, result: jobs.UploadResult) -> None:
        """Answer an upload, or note its result until the objects layout has it too."""
