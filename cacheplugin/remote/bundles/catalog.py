"""What a session knows of the bucket: which entries lie in which bundles, and by whose manifests."""

from .index import MAX_USED_S, Row, place_of
from .manifest import MAX_SUPERSEDED, Manifest, compose

REFRESH_S = 86400  # a manifest older than this is written again, so that prune sees its use


class Catalog:
    """Rows by action and by output. ``scope`` is the text of the session's own."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._rows = {}  # action: Row
        self._bodies = {}  # output: a Row with its place
        self._own = set()  # actions that manifests of the scope name
        self._carried = {}  # actions to carry forward, in order; the values say nothing
        self._superseded = []  # manifests of the scope whose rows are here
        self._written_s = 0.0  # when the newest of them was written, by the store's clock
        self._unnamed = {}  # actions whose rows no manifest names yet, in order

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, result) -> None:
        """Take what a LoadResult brings."""
        self._superseded, self._written_s = list(result.names), result.written_s
        for rows, own, carried in (
            (result.own, True, True),
            (result.others, False, True),
            (result.foreign, False, False),
        ):
            for fields in rows:
                row = Row(*fields)
                self._learn(row)
                if own:
                    self._own.add(row.action)
                if carried:
                    self._carried[row.action] = None

    def _learn(self, row) -> None:
        known = self._rows.get(row.action)
        if known is None or known.time_ns < row.time_ns:
            self._rows[row.action] = row
        self._bodies.setdefault(row.output, row)

    def add(self, row) -> None:
        """Note an entry that is in a bundle by now, and in no manifest yet."""
        self._learn(row)
        self._unnamed[row.action] = None

    def row(self, action: str):
        """The Row of an action, or None."""
        return self._rows.get(action)

    def actions(self):
        """All that have a Row."""
        return self._rows.keys()

    def is_named(self, action: str) -> bool:
        """Whether a manifest of the session's own scope names an action."""
        return action in self._own

    def rows(self, actions) -> list:
        """The Rows of those of ``actions`` that have one."""
        return [self._rows[action] for action in actions if action in self._rows]

    def place(self, output: str):
        """A Row that says where a body lies, or None."""
        return self._bodies.get(output)

    def forget(self, rows) -> None:
        """What these Rows say is not there, or damaged: nothing lies there any more."""
        for row in rows:
            known = self._rows.get(row.action)
            if known is not None and place_of(known) == place_of(row):
                del self._rows[row.action]
                self._unnamed.pop(row.action, None)
            body = self._bodies.get(row.output)
            if body is not None and place_of(body) == place_of(row):
                del self._bodies[row.output]

    def forget_bundle(self, name: str) -> None:
        """A bundle is gone, and all that was in it."""
        everything = (*self._rows.values(), *self._bodies.values())
        self.forget([row for row in everything if row.bundle == name])

    # -- the session's own manifest ----------------------------------------------------------------

    def manifest(self, used, now_s: float):
        """The manifest of a session that used these actions, or None where it would say nothing new.

        ``used`` is in the order of first use; ``now_s`` in seconds since the epoch.
        """
        used = [action for action in used if action in self._rows]
        is_old = now_s - self._written_s >= REFRESH_S
        if not self._unnamed and not (used and (is_old or not self._own.issuperset(used))):
            return None
        used = dict.fromkeys((*used, *self._unnamed))
        now_s = min(max(0, int(now_s)), MAX_USED_S)  # whatever the clock says
        rows = compose(used, self._rows, self._carried, now_s)
        return Manifest(self._scope, self._superseded, rows)

    def wrote(self, name: str, manifest: Manifest, now_s: float) -> None:
        """A manifest is in the bucket, under ``name``."""
        for row in manifest.rows:
            known = self._rows.get(row.action)
            if known is not None and known == row._replace(used_s=known.used_s):
                self._rows[row.action] = row
                self._unnamed.pop(row.action, None)
        self._superseded = [name, *self._superseded][:MAX_SUPERSEDED]
        self._written_s = now_s
        self._own = {row.action for row in manifest.rows}
        self._carried.update(dict.fromkeys(row.action for row in manifest.rows))
