"""What a session knows of the bucket: which entries lie where, and which manifests name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .manifest import MAX_SUPERSEDED, Manifest, compose
from .rows import MAX_USED_S, Row

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ...ipc import jobs

REFRESH_S = 86400  # an older manifest is written again, so that prune sees that it is used


class Catalog:
    """The rows that are known, by action and by output. ``scope`` is the text of the session's."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._rows: dict[str, Row] = {}  # by action
        self._bodies: dict[str, Row] = {}  # by output: a row that has its place
        self._own: set[str] = set()  # actions that manifests of the scope name
        self._carried: dict[str, None] = {}  # actions to carry forward, in order
        self._superseded: list[str] = []  # manifests of the scope whose rows are here
        self._written_s = 0.0  # when the newest of them was written, by the store's clock
        self._unnamed: dict[str, None] = {}  # actions whose rows no manifest names yet, in order

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, result: jobs.LoadResult) -> None:
        """Take the rows that were read from manifests."""
        self._superseded, self._written_s = list(result.superseded), result.written_s
        for rows, is_own, is_carried in (
            (result.own, True, True),
            (result.related, False, True),
            (result.unrelated, False, False),
        ):
            for fields in rows:
                row = Row(*fields)
                self._learn(row)
                if is_own:
                    self._own.add(row.action)
                if is_carried:
                    self._carried[row.action] = None

    def _learn(self, row: Row) -> None:
        known = self._rows.get(row.action)
        if known is None or known.time_ns < row.time_ns:
            self._rows[row.action] = row
        self._bodies.setdefault(row.output, row)

    def add(self, row: Row) -> None:
        """Take the row of an entry that is in a bundle and in no manifest of the scope."""
        self._learn(row)
        self._unnamed[row.action] = None

    def row(self, action: str) -> Row | None:
        """The row of an action, if it is known."""
        return self._rows.get(action)

    def actions(self) -> Collection[str]:
        """All actions that have a row."""
        return self._rows.keys()

    def is_named(self, action: str) -> bool:
        """Whether a manifest of the session's own scope names an action."""
        return action in self._own

    def rows(self, actions: Iterable[str]) -> list[Row]:
        """The rows of those ``actions`` that have one, in their order."""
        return [self._rows[action] for action in actions if action in self._rows]

    def body(self, output: str) -> Row | None:
        """A row, perhaps of another action, that has the place of an output's body."""
        return self._bodies.get(output)

    def forget(self, rows: Iterable[Row]) -> None:
        """Drop what is known of the places in ``rows``, because the bodies there are unusable."""
        for row in rows:
            known = self._rows.get(row.action)
            if known is not None and known.place == row.place:
                del self._rows[row.action]
                self._unnamed.pop(row.action, None)
            body = self._bodies.get(row.output)
            if body is not None and body.place == row.place:
                del self._bodies[row.output]

    def forget_bundle(self, name: str) -> None:
        """Drop what is known of a bundle that does not exist."""
        known = (*self._rows.values(), *self._bodies.values())
        self.forget([row for row in known if row.bundle == name])

    # -- the session's own manifest ----------------------------------------------------------------

    def manifest(self, used: Iterable[str], now_s: float) -> Manifest | None:
        """The manifest of a session, or None if it would say nothing new.

        ``used``: the actions that the session used, in the order of first use; ``now_s``: seconds
        since the epoch.
        """
        used = [action for action in used if action in self._rows]
        is_old = now_s - self._written_s >= REFRESH_S
        if not self._unnamed and not (used and (is_old or not self._own.issuperset(used))):
            return None
        used = dict.fromkeys((*used, *self._unnamed))
        used_s = min(max(0, int(now_s)), MAX_USED_S)  # the clock may be wrong
        rows = compose(used, self._rows, self._carried, used_s)
        return Manifest(self._scope, self._superseded, rows)

    def wrote(self, name: str, manifest: Manifest, now_s: float) -> None:
        """Note that ``manifest`` is in the bucket, under ``name``."""
        for row in manifest.rows:
            known = self._rows.get(row.action)
            if known is not None and known == row._replace(used_s=known.used_s):
                self._rows[row.action] = row
                self._unnamed.pop(row.action, None)
        self._superseded = [name, *self._superseded][:MAX_SUPERSEDED]
        self._written_s = now_s
        self._own = {row.action for row in manifest.rows}
        self._carried.update(dict.fromkeys(row.action for row in manifest.rows))
