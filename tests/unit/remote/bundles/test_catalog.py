"""remote/bundles/catalog.py: what a session knows, and what it says of it in its manifest."""

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
    """A catalog that has loaded these rows; all were used lately."""
    found = Catalog("scope")
    rows = [
        [tuple(one._replace(used_s=one.used_s or RECENT_S)) for one in some]
        for some in (own, related, unrelated)
    ]
    result = jobs.LoadResult(1, jobs.HIT, "", *rows, manifests, written_s, (), False, 0, 0)
    found.load(result)
    return found


def written(found, used, now_s=NOW_S, name="m-3") -> list:
    """The names of a manifest that must be due, once it is in the bucket."""
    manifest = found.manifest(used, now_s)
    found.wrote(name, manifest, now_s)
    return names(manifest.rows)


OWN = [row(name) for name in "abc"]


# -- what is known ---------------------------------------------------------------------------------


def test_rows_by_action_and_output():
    """Rows are found by action, places of bodies by output, whoever named them."""
    found = catalog([row("a")], [row("b")], [row("c")])
    assert len(found) == 3
    for name in "abc":
        assert found.row(action_id(name)).action == action_id(name)
        assert found.body(output_id(name.encode())).output == output_id(name.encode())
    assert found.row(action_id("d")) is found.body(output_id(b"d")) is None
    assert names(found.rows(ids("cda"))) == ids("ca")


@pytest.mark.parametrize("time_ns", [TIME_NS - 1, TIME_NS, TIME_NS + 1])
def test_latest_put_counts(time_ns):
    """Of two rows of an action that of the later put counts, and of equal ones the scope's own."""
    found = catalog([row("a")], [row("a", bundle="bundle-b", time_ns=time_ns)])
    expected = "bundle-b" if time_ns > TIME_NS else "bundle-a"
    assert found.row(action_id("a")).bundle == expected


def test_forget():
    """What is damaged is in no bundle any more, nor is its body; the rest stays."""
    found = catalog(OWN)
    found.forget([OWN[1], row("x")])
    assert found.row(action_id("b")) is found.body(output_id(b"b")) is None
    assert len(found) == 2 and found.body(output_id(b"a")) is not None


def test_forget_no_more_than_what_lies_there():
    """What was put elsewhere since is not forgotten for what was damaged before."""
    found = catalog(OWN)
    later = row("b", bundle="bundle-c", time_ns=TIME_NS + 1)
    found.add(later)
    found.forget([OWN[1]])
    assert found.row(action_id("b")) == later
    assert names(found.manifest([], NOW_S).rows) == ids("bac")


def test_forget_keeps_another_copy_of_the_body():
    """A body that lies elsewhere as well is still known to lie there."""
    body = output_id(b"body")
    rows = [row("a", output=body), row("b", output=body, bundle="bundle-b")]
    found = catalog(rows)
    found.forget(rows[1:])
    assert found.body(body).bundle == "bundle-a"
    found.forget(rows[:1])
    assert found.body(body) is None


def test_forget_bundle():
    """With a bundle go all rows and bodies in it, those of other bundles stay."""
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
    """Neither used nor carried is what is damaged; put anew it is in the next one."""
    found = catalog(OWN)
    found.forget(OWN[:2])
    found.add(row("a", bundle="bundle-c", time_ns=TIME_NS + 1))
    manifest = found.manifest(ids("ab"), NOW_S)
    assert names(manifest.rows) == ids("ac")
    assert manifest.rows[0].bundle == "bundle-c"


def test_what_was_put_and_then_forgotten_is_no_news():
    """A session's own entry that turns out damaged asks for no manifest that cannot have it."""
    found = catalog(OWN)
    found.add(row("d"))
    found.forget([row("d")])
    assert found.manifest(ids("a"), NOW_S) is None


# -- when a manifest is due ------------------------------------------------------------------------


@pytest.mark.parametrize("used", ["", "a", "cba", "ax"])
def test_nothing_new(used):
    """A session that used what the scope's manifests have, and put nothing, writes none."""
    assert catalog(OWN).manifest(ids(used), NOW_S) is None


def test_nothing_known():
    """Where there is nothing, nothing is written."""
    found = catalog(manifests=(), written_s=0)
    assert found.manifest(ids("a"), NOW_S) is None
    assert Catalog("scope").manifest(ids("a"), NOW_S) is None


def test_refresh_after_a_day():
    """Use alone is told of once a day."""
    found = catalog(OWN)
    assert found.manifest(ids("b"), RECENT_S + REFRESH_S - 1) is None
    manifest = found.manifest(ids("b"), RECENT_S + REFRESH_S)
    assert names(manifest.rows) == ids("bac")
    assert manifest.rows[0].used_s == RECENT_S + REFRESH_S
    assert found.manifest([], RECENT_S + REFRESH_S) is None
    found.wrote("m-3", manifest, RECENT_S + REFRESH_S)
    assert found.manifest(ids("b"), RECENT_S + REFRESH_S + 1) is None
    assert found.manifest(ids("b"), RECENT_S + 2 * REFRESH_S) is not None


def test_entries_of_other_scopes_that_were_used():
    """What came by a related scope's manifest, and was used, is named by the scope's own."""
    found = catalog(OWN, [row("d"), row("e")])
    assert found.manifest(ids("a"), NOW_S) is None
    assert written(found, ids("ad")) == ids("adbce")
    assert found.manifest(ids("ade"), NOW_S) is None


def test_foreign_entries_are_carried_only_when_used():
    """Of scopes that happened to be there no more is taken over than was of use."""
    found = catalog([], [], [row("a"), row("b")], manifests=(), written_s=0)
    assert found.manifest([], NOW_S) is None
    assert written(found, ids("b")) == ids("b")
    assert found.manifest(ids("b"), NOW_S) is None
    assert written(found, ids("a")) == ids("ab")


def test_what_was_put():
    """What was put is in the manifest, used or not, at the place of its use or at the end."""
    found = catalog(OWN)
    found.add(row("e"))
    found.add(row("d"))
    manifest = found.manifest(ids("bd"), NOW_S)
    assert names(manifest.rows) == ids("bdeac")
    assert [one.used_s for one in manifest.rows] == [NOW_S] * 3 + [RECENT_S] * 2
    assert (manifest.scope, manifest.superseded) == ("scope", ["m-2", "m-1"])
    found.wrote("m-3", manifest, NOW_S)
    assert found.manifest(ids("edcba"), NOW_S + 1) is None


def test_manifest_that_was_not_written():
    """What a manifest would have said is said by the next one."""
    found = catalog(OWN)
    found.add(row("d"))
    assert found.manifest(ids("d"), NOW_S) == found.manifest(ids("d"), NOW_S)


# -- several sessions on one catalog ---------------------------------------------------------------


def test_second_session_carries_what_the_first_put():
    """A manifest that supersedes another of the same pool has what that one has."""
    found = catalog(OWN)
    found.add(row("d"))
    assert written(found, ids("d")) == ids("dabc")
    found.add(row("e"))
    assert written(found, ids("e"), NOW_S + 1, "m-4") == ids("edabc")


def test_second_session_carries_what_the_first_used():
    """What was used in time by one session is carried by the next, however old it was before."""
    found = catalog([row("a", used_s=NOW_S - CARRY_S + 10)])
    found.add(row("b"))
    assert written(found, ids("ab")) == ids("ab")
    found.add(row("c"))
    assert written(found, ids("c"), NOW_S + 20, "m-4") == ids("cab")


def test_what_is_put_while_a_manifest_is_written():
    """A put that a manifest under way does not have is for the next one."""
    found = catalog(OWN)
    found.add(row("d"))
    manifest = found.manifest([], NOW_S)
    found.add(row("e"))
    found.wrote("m-3", manifest, NOW_S)
    assert set(written(found, [], name="m-4")) == set(ids("abcde"))


def test_what_is_put_again_while_a_manifest_is_written():
    """A later put of an action is not taken for the one that a manifest under way has."""
    found = catalog(OWN)
    found.add(row("d"))
    manifest = found.manifest([], NOW_S)
    found.add(row("d", bundle="bundle-b", time_ns=TIME_NS + 1))
    found.wrote("m-3", manifest, NOW_S)
    again = found.manifest(ids("d"), NOW_S)
    assert again is not None and again.rows[0].bundle == "bundle-b"


def test_superseded_names_grow_and_are_bounded():
    """Each manifest supersedes those before it, the newest first, up to a bound."""
    found = catalog(OWN)
    for at in range(3, MAX_SUPERSEDED + 3):
        found.add(row("d", time_ns=TIME_NS + at))
        manifest = found.manifest([], NOW_S)
        assert manifest.superseded[0] == f"m-{at - 1}"
        assert len(manifest.superseded) == min(at - 1, MAX_SUPERSEDED)
        found.wrote(f"m-{at}", manifest, NOW_S)
