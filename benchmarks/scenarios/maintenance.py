"""``prune``, ``verify``, ``spool``: the cost of the maintenance of a store."""

import hashlib
import os
import random
import statistics
import subprocess
import time
from base64 import b64encode

from cacheplugin.options import Options
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.spool import SpoolSession
from cacheplugin.store.tree import Store

from .. import rivals
from ..driver import Plugin
from ..lab import go_environment
from ..runner import Case, Comparison, Failed
from ..trees import EXPIRY_S, Tree, deciding, timed

_ENTRIES = 500  # entries that are put and got while a prune runs
_BODY_BYTES = 1300  # the median size in a build of std


def prune(lab):
    """Deciding what to remove, beside find; removing it, beside rm; puts and gets meanwhile."""
    size = lab.sizes.prune_actions
    tree = Tree(lab.fresh("tree"), size, lab.sizes.syncs)
    yield deciding("prune", f"{size} actions, deciding", tree)
    expired = f"{tree.root}.expired"
    with open(expired, "w") as file:
        file.writelines(f"{path}\n" for path in tree.expired())

    def ours():
        tree.fill(False)
        return timed(_prune(tree.root))

    def theirs():
        tree.fill(False)
        found = timed(["find", tree.root, "-type", "f", "-printf", r"%s %T@\n"])
        return {"wall_s": found["wall_s"] + timed(["xargs", "-a", expired, "rm"])["wall_s"]}

    yield Comparison(
        "prune",
        f"{size} actions, a tenth deleted",
        "wall_s",
        "find, xargs rm",
        [Case("find, xargs rm", theirs), Case(rivals.OURS, ours)],
    )
    client = _Client(tree.root)
    for what in ("put", "get"):
        yield Comparison(
            "prune",
            f"a {what} while it runs",
            "latency_s",
            "idle",
            [
                Case("idle", lambda what=what: client.latency(what, lambda: None)),
                Case(
                    "while pruning",
                    lambda what=what: client.latency(what, lambda: tree.fill(False), True),
                ),
            ],
        )
    client.plugin.close()


def _prune(root) -> list:
    return [rivals.PLUGIN, f"--cache-dir={root}", "prune", f"--expiry={EXPIRY_S}s"]


class _Client:
    """A client that puts its own entries in the store and gets them, one at a time."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.plugin = Plugin([rivals.PLUGIN, f"--cache-dir={root}"], go_environment(root))
        self._puts = []
        for number in range(_ENTRIES):
            body = hashlib.sha256(b"%d" % number).digest() * (_BODY_BYTES // 32)
            action = hashlib.sha256(b"own action %d" % number).hexdigest()
            self._puts.append(
                (action, hashlib.sha256(body).hexdigest(), len(body), b64encode(body))
            )
        for action, output, size, encoded in self._puts:
            self.plugin.put(action, output, size, [encoded])

    def latency(self, what: str, prepare, prunes: bool = False) -> dict:
        """The median latency of _ENTRIES puts or gets; with ``prunes``, of all during a prune."""
        prepare()
        process = (
            subprocess.Popen(_prune(self._root), stdout=subprocess.DEVNULL) if prunes else None
        )
        spent = []
        while len(spent) < _ENTRIES if process is None else process.poll() is None:
            action, output, size, encoded = self._puts[len(spent) % _ENTRIES]
            begin = time.perf_counter()
            if what == "put":
                self.plugin.put(action, output, size, [encoded])
            else:
                self.plugin.gets([action], 1)
            spent.append(time.perf_counter() - begin)
        if not spent or (process and process.returncode):
            raise Failed("the prune ended at once")
        return {"latency_s": statistics.median(spent)}


def verify(lab):
    """Reading and checking all entries, beside cat of the same files."""
    root = lab.fresh("verify")
    cache, source, written, number = LocalCache(Store(root)), random.Random(1), 0, 0
    while written < lab.sizes.verify_mb * 1_000_000:
        body = source.randbytes(_body_size(source))
        _store(cache, f"{number}", body)
        written, number = written + len(body), number + 1
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(root) for name in names]
    listed = os.path.join(lab.work, "verify.files")
    with open(listed, "w") as file:
        file.write("\0".join(paths))
    ours = [rivals.PLUGIN, f"--cache-dir={root}", "verify"]
    yield Comparison(
        "verify",
        f"{lab.sizes.verify_mb} MB",
        "wall_s",
        "cat",
        [
            Case("cat", lambda: timed(["xargs", "-0", "-a", listed, "cat"])),
            Case("verify", lambda: timed(ours)),
            Case("verify --sha256", lambda: timed([*ours, "--sha256"])),
        ],
    )


def spool(lab):
    """A put that is noted in the spool, beside a put that is not."""
    source = random.Random(1)
    bodies = [source.randbytes(_body_size(source)) for _ in range(lab.sizes.spool_puts)]

    def put_all(spools):
        root = lab.fresh("spool")
        cache, session, waiting = LocalCache(Store(root)), None, []
        begin = time.perf_counter()
        for number, body in enumerate(bodies):
            entry = _store(cache, f"{number}", body)
            if spools:
                session = session or SpoolSession.create(cache.store, Options(bucket="bench"), "")
                waiting.append(session.add(*entry))
        for number in waiting:
            session.done(number)
        if session is not None:
            session.release()
        return {"put_s": (time.perf_counter() - begin) / len(bodies)}

    yield Comparison(
        "spool",
        f"{len(bodies)} puts",
        "put_s",
        "without",
        [
            Case("without", lambda: put_all(False)),
            Case("with the spool", lambda: put_all(True)),
        ],
    )


def _store(cache, name, body) -> tuple:
    """Store an entry; returns the arguments of SpoolSession.add."""
    action, output = hashlib.sha256(name.encode()).hexdigest(), hashlib.sha256(body).hexdigest()
    with cache.writer(action, output, len(body)) as writer:
        writer.write(body)
        time_ns = time.time_ns()
        return action, output, len(body), time_ns, writer.commit(time_ns)


def _body_size(source) -> int:
    """A random size, distributed as in a build of std.

    A quarter is up to 70 B, the median 1.3 kB, 90 % are below 403 kB, the largest 12.6 MB.
    """
    at, within = source.random(), source.random()
    for share, least, most in ((0.25, 1, 70), (0.5, 71, 1300), (0.9, 1301, 403_000)):
        if at < share:
            return int(least * (most / least) ** within)
    return int(403_000 * (12_600_000 / 403_000) ** within**4)
