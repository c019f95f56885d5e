"""A machine for tests: a store, a plan and a remote, in one process and one thread."""

import marshal
from collections import deque

from cacheplugin.ipc import jobs
from cacheplugin.options import Options
from cacheplugin.pool import worker
from cacheplugin.remote.layouts import Remote, make_plan
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import Store
from entries import TIME_NS, action_id, output_id, put

SCOPE = "example.com/a linux/amd64 main"
BODY = b"package main\n" * 5000


def crossed(message):
    """The message as another process would receive it."""
    return jobs.unpack(marshal.loads(marshal.dumps(jobs.pack(message))))


class Machine:
    """One machine with one session: a local cache at ``root``, and a plan over ``bucket``.

    Several machines may share the bucket. ``received`` and ``sent`` are bytes over the network.
    ``scopes`` are the scopes of the session, as from scope.find.
    """

    def __init__(self, layout, bucket, root, scopes=(SCOPE,)) -> None:
        options = Options(layout=layout, prefix="prefix")
        self.cache = LocalCache(Store(str(root)), spill=False)
        self.received = self.sent = 0
        self.expected = None  # the latest Expected
        self.remote = Remote(options, bucket, self.cache)
        self._tasks = deque()
        self._results = {}  # number: result
        self._damaged = set()  # outputs
        self._number = 0
        self._plan = make_plan(options, self, self.cache.store, tuple(scopes))
        self._plan.begin(0)

    # -- the PlanHost of the plan

    def submit(self, _, task) -> None:
        self._tasks.append(crossed(task))

    def report(self, message) -> None:
        message = crossed(message)
        if isinstance(message, jobs.Expected):
            self.expected = message
        else:
            self.received += getattr(message, "received", 0)
            self.sent += getattr(message, "sent", 0)
        if hasattr(message, "number"):
            assert message.number not in self._results
            self._results[message.number] = message

    def _run(self) -> None:
        while self._tasks:
            task = self._tasks.popleft()
            self._plan.done(task, crossed(worker.perform(self.remote, task)))

    # -- jobs as a front sends them

    def _do(self, do, kind, *fields):
        """Send a job; returns its number, and its result or None if that comes later."""
        self._number += 1
        do(crossed(kind(self._number, *fields)))
        self._run()
        return self._number, self._results.pop(self._number, None)

    def begin(self) -> None:
        """Load the manifests of the bucket."""
        self._plan.prefetch()
        self._run()

    def fetch(self, name) -> jobs.FetchResult:
        _, result = self._do(self._plan.fetch, jobs.FetchJob, action_id(name))
        if result.status == jobs.DAMAGED:
            self._damaged.add(result.output)
        return result

    def upload(self, name, body=BODY, time_ns=TIME_NS, path=None) -> jobs.UploadResult:
        """Store an entry unless ``path`` is its body, upload it, and end the session."""
        path = path or put(self.cache, name, body, time_ns)
        action, output = action_id(name), output_id(body)
        number, result = self._do(
            self._plan.upload,
            jobs.UploadJob,
            action,
            output,
            len(body),
            time_ns,
            path,
            False,
            output in self._damaged,
        )
        self.finish([action])
        return result or self._results.pop(number)

    def finish(self, used) -> jobs.FinishResult:
        return self._do(self._plan.finish, jobs.FinishJob, used)[1]

    def lookup(self, name):
        """As Store.lookup."""
        return self.cache.lookup(action_id(name))
