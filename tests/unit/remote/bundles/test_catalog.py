"""remote/bundles/catalog.py: the rows that a session knows, and the manifest it writes."""

import pytest

from cacheplugin.ipc import jobs
from cacheplugin.remote.bundles.catalog import REFRESH_S, Catalog
from cacheplugin.remote.bundles.manifest import CARRY_S, MAX_SUPERSEDED
from entries import TIME_NS, action_id, output_id
from rows import ids, names, row

NOW_S = 1_800_000_000
RECENT_S = NOW_S - 100


def catalog(
    own=(), related=(), unrelated=(), manifests=("m-2", "m-1"), written_s=RECENT_S
) -> Catalog:
    """A catalog that has loaded these rows, all of them used recently."""
    found = Catalog("scope")
    rows = [
        [tuple(one._replace(used_s=one.used_s or RECENT_S)) for one in some]
        for some in (own, related, unrelated)
    ]
    result = jobs.LoadResult(1, jobs.HIT, "", *rows, manifests, written_s, (), False, 0, 0)
    found.load(result)
    return found


def written(found, used, now_s=NOW_S, name="m-3") -> list:
    """Write the manifest that must be due; returns the actions in it."""
    manifest = found.manifest(used, now_s)
    found.wrote(name, manifest, now_s)
    return names(manifest.rows)


OWN = [row(name) for name in "abc"]


# -- rows and bodies -------------------------------------------------------------------------------


def test_rows_by_action_and_output():
    """Rows are found by action and bodies by output, for rows of any scope."""
    found = catalog([row("a")], [row("b")], [row("c")])
    assert len(found) == 3
    for name in "abc":
        assert found.row(action_id(name)).action == action_id(name)
        assert found.body(output_id(name.encode())).output == output_id(name.encode())
    assert found.row(action_id("d")) is found.body(output_id(b"d")) is None
    assert names(found.rows(ids("cda"))) == ids("ca")


@pytest.mark.parametrize("time_ns", [TIME_NS - 1, TIME_NS, TIME_NS + 1])
def test_latest_put_counts(time_ns):
    """Of two rows of an action the later put is taken, and of equal ones the scope's own row."""
    found = catalog([row("a")], [row("a", bundle="bundle-b", time_ns=time_ns)])
    expected = "bundle-b" if time_ns > TIME_NS else "bundle-a"
    assert found.row(action_id("a")).bundle == expected


def test_forget():
    """A forgotten row and its body are unknown; the others stay."""
    found = catalog(OWN)
    found.forget([OWN[1], row("x")])
    assert found.row(action_id("b")) is found.body(output_id(b"b")) is None
    assert len(found) == 2 and found.body(output_id(b"a")) is not None


def test_forget_keeps_a_row_with_another_place():
    """A row that was put to another place meanwhile is kept."""
    found = catalog(OWN)
    later = row("b", bundle="bundle-c", time_ns=TIME_NS + 1)
    found.add(later)
    found.forget([OWN[1]])
    assert found.row(action_id("b")) == later
    assert names(found.manifest([], NOW_S).rows) == ids("bac")


def test_forget_keeps_another_copy_of_the_body():
    """A body that is at another place as well is still known."""
    body = output_id(b"body")
    rows = [row("a", output=body), row("b", output=body, bundle="bundle-b")]
    found = catalog(rows)
    found.forget(rows[1:])
    assert found.body(body).bundle == "bundle-a"
    found.forget(rows[:1])
    assert found.body(body) is None


def test_forget_bundle():
    """All rows and bodies of a bundle are forgotten, those of other bundles stay."""
    body = output_id(b"body")
    found = catalog(
        [
            row("a"),
            row("b", output=body),
            row("c", bundle="bundle-b"),
            row("d", output=body, time_ns=TIME_NS - 1, bundle="bundle-b"),
        ]
    )
    found.forget_bundle("bundle-a")
    assert names(found.rows(ids("abcd"))) == ids("cd")
    assert found.body(output_id(b"a")) is None
    assert found.body(output_id(b"c")) is not None


def test_forgotten_rows_are_in_no_manifest():
    """A forgotten row is neither used nor carried forward, until its action is put again."""
    found = catalog(OWN)
    found.forget(OWN[:2])
    found.add(row("a", bundle="bundle-c", time_ns=TIME_NS + 1))
    manifest = found.manifest(ids("ab"), NOW_S)
    assert names(manifest.rows) == ids("ac")
    assert manifest.rows[0].bundle == "bundle-c"


def test_forgotten_put_needs_no_manifest():
    """A put that was forgotten does not make a manifest due."""
    found = catalog(OWN)
    found.add(row("d"))
    found.forget([row("d")])
    assert found.manifest(ids("a"), NOW_S) is None


# -- when a manifest is due ------------------------------------------------------------------------


@pytest.mark.parametrize("used", ["", "a", "cba", "ax"])
def test_no_manifest_without_news(used):
    """A session that put nothing and used only what the scope's manifests name writes none."""
    assert catalog(OWN).manifest(ids(used), NOW_S) is None


def test_no_manifest_without_rows():
    found = catalog(manifests=(), written_s=0)
    assert found.manifest(ids("a"), NOW_S) is None
    assert Catalog("scope").manifest(ids("a"), NOW_S) is None


def test_refresh_after_a_day():
    """A manifest that only renews times of use is due once a day."""
    found = catalog(OWN)
    assert found.manifest(ids("b"), RECENT_S + REFRESH_S - 1) is None
    manifest = found.manifest(ids("b"), RECENT_S + REFRESH_S)
    assert names(manifest.rows) == ids("bac")
    assert manifest.rows[0].used_s == RECENT_S + REFRESH_S
    assert found.manifest([], RECENT_S + REFRESH_S) is None
    found.wrote("m-3", manifest, RECENT_S + REFRESH_S)
    assert found.manifest(ids("b"), RECENT_S + REFRESH_S + 1) is None
    assert found.manifest(ids("b"), RECENT_S + 2 * REFRESH_S) is not None


def test_used_entries_of_related_scopes():
    """A used entry of a related scope is named in the scope's own manifest."""
    found = catalog(OWN, [row("d"), row("e")])
    assert found.manifest(ids("a"), NOW_S) is None
    assert written(found, ids("ad")) == ids("adbce")
    assert found.manifest(ids("ade"), NOW_S) is None


def test_entries_of_unrelated_scopes_are_carried_only_when_used():
    """Unused entries of unrelated scopes are not in the manifest."""
    found = catalog([], [], [row("a"), row("b")], manifests=(), written_s=0)
    assert found.manifest([], NOW_S) is None
    assert written(found, ids("b")) == ids("b")
    assert found.manifest(ids("b"), NOW_S) is None
    assert written(found, ids("a")) == ids("ab")


def test_puts_are_in_the_manifest():
    """A put is in the manifest in the order of its use, or after the used actions."""
    found = catalog(OWN)
    found.add(row("e"))
    found.add(row("d"))
    manifest = found.manifest(ids("bd"), NOW_S)
    assert names(manifest.rows) == ids("bdeac")
    assert [one.used_s for one in manifest.rows] == [NOW_S] * 3 + [RECENT_S] * 2
    assert (manifest.scope, manifest.superseded) == ("scope", ["m-2", "m-1"])
    found.wrote("m-3", manifest, NOW_S)
    assert found.manifest(ids("edcba"), NOW_S + 1) is None


def test_manifest_that_failed():
    """The rows of a manifest that was not written are in the next one."""
    found = catalog(OWN)
    found.add(row("d"))
    assert found.manifest(ids("d"), NOW_S) == found.manifest(ids("d"), NOW_S)


# -- several sessions on one catalog ---------------------------------------------------------------


def test_second_session_carries_puts_of_the_first():
    """A manifest that supersedes another of the same plan has its rows."""
    found = catalog(OWN)
    found.add(row("d"))
    assert written(found, ids("d")) == ids("dabc")
    found.add(row("e"))
    assert written(found, ids("e"), NOW_S + 1, "m-4") == ids("edabc")


def test_second_session_carries_uses_of_the_first():
    """A row that one session used is carried forward by the next, with its new time of use."""
    found = catalog([row("a", used_s=NOW_S - CARRY_S + 10)])
    found.add(row("b"))
    assert written(found, ids("ab")) == ids("ab")
    found.add(row("c"))
    assert written(found, ids("c"), NOW_S + 20, "m-4") == ids("cab")


def test_put_while_a_manifest_is_written():
    """The put is in the next manifest."""
    found = catalog(OWN)
    found.add(row("d"))
    manifest = found.manifest([], NOW_S)
    found.add(row("e"))
    found.wrote("m-3", manifest, NOW_S)
    assert set(written(found, [], name="m-4")) == set(ids("abcde"))


def test_second_put_while_a_manifest_is_written():
    """A later put of an action is in the next manifest."""
    found = catalog(OWN)
    found.add(row("d"))
    manifest = found.manifest([], NOW_S)
    found.add(row("d", bundle="bundle-b", time_ns=TIME_NS + 1))
    found.wrote("m-3", manifest, NOW_S)
    again = found.manifest(ids("d"), NOW_S)
    assert again is not None and again.rows[0].bundle == "bundle-b"


def test_superseded_names():
    """Each manifest supersedes those before it, the newest first, at most MAX_SUPERSEDED."""
    found = catalog(OWN)
    for at in range(3, MAX_SUPERSEDED + 3):
        found.add(row("d", time_ns=TIME_NS + at))
        manifest = found.manifest([], NOW_S)
        assert manifest.superseded[0] == f"m-{at - 1}"
        assert len(manifest.superseded) == min(at - 1, MAX_SUPERSEDED)
        found.wrote(f"m-{at}", manifest, NOW_S)
