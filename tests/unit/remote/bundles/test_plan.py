"""remote/bundles/plan.py and fetching.py: loading manifests, gets and prefetches."""

import fcntl
import os
from contextlib import contextmanager

import pytest

from bundles_driver import SCOPE, Driver
from cacheplugin.ipc import jobs
from cacheplugin.remote.bundles import fetching
from cacheplugin.remote.bundles.fetching import PREFETCHES_AT_ONCE
from cacheplugin.remote.bundles.keys import scope_key
from cacheplugin.remote.bundles.ranges import GAP_BYTES
from entries import TIME_NS, action_id
from rows import empty_row, ids, names, row

NO_PREFETCH = {"prefetch_limit_bytes": 0}


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)


@pytest.fixture
def on_demand(tmp_path):
    """A driver without prefetches."""
    return Driver(tmp_path, **NO_PREFETCH)


def apart(letters, **fields) -> list:
    """Rows that are too far from each other for one range."""
    return [row(name, 8 + at * 2 * GAP_BYTES, **fields) for at, name in enumerate(letters)]


def wanted(tasks) -> list:
    """The actions of RangeJobs, in order."""
    return [action for task in tasks for action, *_ in task.rows]


# -- loading manifests -----------------------------------------------------------------------------


def test_gets_wait_for_the_manifests(driver):
    """Gets before the manifests are loaded are answered after that; manifests load once."""
    known, unknown = driver.get("a"), driver.get("b")
    driver.plan.prefetch()
    assert driver.answers() == {}
    driver.load([row("a")], missing="a")
    assert driver.answers() == {unknown: jobs.MISS}
    driver.arrive(driver.only(jobs.RangeJob))
    assert driver.answers() == {known: jobs.ARRIVED}
    driver.plan.prefetch()
    assert driver.tasks == []


@pytest.mark.parametrize("status", [jobs.FAILED, jobs.TIMED_OUT, jobs.SKIPPED])
def test_failing_load(driver, status):
    """Jobs that wait get the status of the failed load; the next job loads again."""
    get, put, finish = driver.get("a"), driver.put("b"), driver.finish("ab")
    driver.fail(driver.only(jobs.LoadJob), status)
    answers = driver.answers()
    assert answers.pop(finish)
    assert answers == {get: status, put: status}
    again = driver.get("a")
    driver.load()
    assert driver.answers() == {again: jobs.MISS}


def test_worker_dies_while_manifests_load(driver):
    """Gets are answered at once; uploads wait for a second load."""
    get, put, finish = driver.get("a"), driver.put("b"), driver.finish("ab")
    driver.fail(driver.only(jobs.LoadJob), jobs.LOST)
    assert driver.answers() == {get: jobs.LOST}
    driver.load()
    driver.bundle(driver.only(jobs.BundleJob))
    driver.manifest()
    assert driver.answers() == {put: jobs.STORED, finish: jobs.STORED}


def test_finish_while_manifests_load(driver):
    """A finish is answered once the session's puts are uploaded and named in a manifest."""
    put, finish = driver.put("b"), driver.finish("b")
    assert driver.answers() == {}
    driver.load([row("a")])
    driver.bundle(driver.only(jobs.BundleJob))
    assert driver.answers() == {}
    assert names(driver.manifest().rows) == ids("ba")
    assert driver.answers() == {put: jobs.STORED, finish: jobs.STORED}


def test_finish_without_other_jobs(driver):
    """A session that asked for nothing sends no request."""
    finish = driver.finish("a")
    assert driver.answers() == {finish: jobs.STORED} and driver.tasks == []


@pytest.mark.parametrize("layout", ["auto", "bundles", "both"])
@pytest.mark.parametrize("objects", [False, True])
def test_expected_message(tmp_path, layout, objects):
    """The front is told what bundles hold, what the store lacks, and if there may be more."""
    driver = Driver(tmp_path, layout=layout)
    driver.begin(*apart("abc"), missing="cb", has_objects=objects, damaged=2)
    expected = jobs.Expected(ids("cb"), ids("a"), not objects and layout != "both")
    assert expected in driver.messages
    assert jobs.Transferred(0, 0, 2) in driver.messages


# -- gets ------------------------------------------------------------------------------------------


def test_get_of_a_stored_entry(on_demand):
    """A get of an entry that is in the store by now needs no request."""
    on_demand.begin(row("a"), missing="a")
    on_demand.store_entry("a")
    get = on_demand.get("a")
    assert on_demand.answers() == {get: jobs.ARRIVED} and on_demand.tasks == []


def test_gets_of_one_action(on_demand):
    """All gets that wait for an action are answered by one range, each once."""
    on_demand.begin(row("a"), row("b", 200), missing="ab")
    waiting = [on_demand.get("a"), on_demand.get("a"), on_demand.get("b")]
    task = on_demand.only(jobs.RangeJob)
    assert (task.bundle, task.start, task.length) == ("bundle-a", 8, 292)
    assert wanted([task]) == ids("ab") and {type(one) for one in task.rows} == {tuple}
    on_demand.arrive(task)
    assert on_demand.answers() == dict.fromkeys(waiting, jobs.ARRIVED)
    assert on_demand.tasks == []
    assert jobs.Transferred(292, 0, 0) in on_demand.messages


def test_get_of_an_entry_that_the_store_lost_again(on_demand):
    """An entry that was fetched and removed is fetched again, alone."""
    on_demand.begin(row("a"), row("b", 200), missing="ab")
    on_demand.get("a")
    on_demand.arrive(on_demand.only(jobs.RangeJob))
    on_demand.answers()
    again = on_demand.get("a")
    task = on_demand.only(jobs.RangeJob)
    assert wanted([task]) == ids("a")
    on_demand.arrive(task)
    assert on_demand.answers() == {again: jobs.ARRIVED}


def test_get_of_an_entry_that_the_store_lost(on_demand):
    """An entry that the store had when the manifests were loaded, and lost, is fetched."""
    on_demand.begin(row("a"))
    get = on_demand.get("a")
    on_demand.arrive(on_demand.only(jobs.RangeJob))
    assert on_demand.answers() == {get: jobs.ARRIVED}


@pytest.mark.parametrize(
    "status", [jobs.FAILED, jobs.TIMED_OUT, jobs.SKIPPED, jobs.LOST, jobs.LOCAL, jobs.UNUSABLE]
)
def test_failing_range(on_demand, status):
    """Gets that wait for a range get its status; the next get fetches it again."""
    on_demand.begin(row("a"), row("b"), missing="ab")
    waiting = on_demand.get("a"), on_demand.get("b")
    on_demand.fail(on_demand.only(jobs.RangeJob), status)
    assert on_demand.answers() == dict.fromkeys(waiting, status)
    again = on_demand.get("b")
    on_demand.arrive(on_demand.only(jobs.RangeJob))
    assert on_demand.answers() == {again: jobs.ARRIVED}


def test_range_that_fails_in_the_middle(on_demand):
    """Arrived entries hit, damaged ones are damaged and then misses, the others have failed."""
    on_demand.begin(row("a"), row("b"), row("c"), row("d"), missing="abcd")
    a, b, c = (on_demand.get(name) for name in "abc")
    on_demand.arrive(
        on_demand.only(jobs.RangeJob), status=jobs.TIMED_OUT, arrived=ids("a"), damaged=ids("bd")
    )
    assert on_demand.answers() == {a: jobs.ARRIVED, b: jobs.DAMAGED, c: jobs.TIMED_OUT}
    assert on_demand.messages[-1].damaged == 1  # d, which no get waits for
    again = on_demand.get("b")
    assert on_demand.answers() == {again: jobs.MISS} and on_demand.tasks == []


def test_entry_missing_from_a_range(on_demand):
    """A get of an entry that a range neither stored nor found damaged fails and does not hang."""
    on_demand.begin(row("a"), row("b"), missing="ab")
    get = on_demand.get("b")
    on_demand.arrive(on_demand.only(jobs.RangeJob), arrived=ids("a"))
    assert on_demand.answers() == {get: jobs.FAILED}


def test_put_of_a_damaged_entry(on_demand):
    """The next put of a damaged entry is uploaded, though a manifest says where its body is."""
    on_demand.begin(row("a"), missing="a")
    get = on_demand.get("a")
    task = on_demand.only(jobs.RangeJob)
    on_demand.arrive(task, status=jobs.DAMAGED, arrived=[], damaged=ids("a"))
    assert on_demand.answers() == {get: jobs.DAMAGED}
    put = on_demand.put("a", time_ns=TIME_NS + 1)
    on_demand.finish("a")
    on_demand.bundle(on_demand.only(jobs.BundleJob))
    assert on_demand.manifest().rows[0].bundle == "bundle-n"
    assert on_demand.answers()[put] == jobs.STORED


def test_absent_bundle(on_demand):
    """All entries of an absent bundle are misses; those of other bundles are not."""
    on_demand.begin(*apart("abc"), row("d", bundle="bundle-b"), missing="abcd")
    a, b = on_demand.get("a"), on_demand.get("b")
    first, second = on_demand.take(jobs.RangeJob)
    on_demand.arrive(first, status=jobs.DAMAGED, arrived=[], damaged=ids("a"), gone=True)
    assert on_demand.answers() == {a: jobs.DAMAGED}
    c, _ = on_demand.get("c"), on_demand.get("d")
    assert on_demand.answers() == {c: jobs.MISS}
    assert wanted(on_demand.take(jobs.RangeJob)) == ids("d")
    on_demand.arrive(second, status=jobs.DAMAGED, arrived=[], damaged=ids("b"), gone=True)
    assert on_demand.answers() == {b: jobs.DAMAGED}


def test_late_damage_does_not_undo_a_put(on_demand):
    """Damage of an action in an absent bundle does not affect its row in a new bundle."""
    on_demand.begin(*apart("ab"), missing="ab")
    for name in "ab":
        on_demand.get(name)
    first, second = on_demand.take(jobs.RangeJob)
    on_demand.arrive(first, status=jobs.DAMAGED, arrived=[], damaged=ids("a"), gone=True)
    on_demand.put("b", time_ns=TIME_NS + 1)
    on_demand.now += 1000
    on_demand.plan.on_time()
    on_demand.bundle(on_demand.only(jobs.BundleJob))
    on_demand.arrive(second, status=jobs.DAMAGED, arrived=[], damaged=ids("b"), gone=True)
    on_demand.finish("b")
    assert names(on_demand.manifest().rows) == ids("b")


# -- prefetching -----------------------------------------------------------------------------------


def test_prefetch_order(driver):
    """Missing entries are fetched in the order of use, PREFETCHES_AT_ONCE ranges at once."""
    letters = "abcdefghijkl"
    driver.begin(*apart(letters), missing=letters[::-1])
    running = driver.take(jobs.RangeJob)
    assert wanted(running) == ids(letters[::-1][:PREFETCHES_AT_ONCE])
    driver.arrive(running[3])
    more = driver.take(jobs.RangeJob)
    assert wanted(more) == ids(letters[::-1][PREFETCHES_AT_ONCE])
    for task in running[:3] + running[4:] + more:
        driver.arrive(task)
    assert wanted(driver.take(jobs.RangeJob)) == ids(letters[2::-1])


def test_get_moves_its_range_to_the_front(driver):
    """The range that a get waits for is fetched next, and only once."""
    letters = "abcdefghijkl"
    driver.begin(*apart(letters), missing=letters)
    running = driver.take(jobs.RangeJob)
    get = driver.get("l")
    task = driver.only(jobs.RangeJob)
    assert wanted([task]) == ids("l")
    driver.arrive(task)
    assert driver.answers() == {get: jobs.ARRIVED}
    for one in running:
        driver.arrive(one)
    assert wanted(driver.take(jobs.RangeJob)) == ids("ijk")


def test_get_of_a_range_that_is_being_fetched(driver):
    """The get waits for the range and sends no request."""
    driver.begin(row("a"), missing="a")
    task = driver.only(jobs.RangeJob)
    get = driver.get("a")
    assert driver.tasks == [] and driver.answers() == {}
    driver.arrive(task)
    assert driver.answers() == {get: jobs.ARRIVED}


def test_prefetch_limit(tmp_path):
    """A prefetch takes at most the limit; other entries are fetched on demand."""
    driver = Driver(tmp_path, prefetch_limit_bytes=250)
    driver.begin(*apart("abcde"), missing="abcde")
    tasks = driver.take(jobs.RangeJob)
    assert wanted(tasks) == ids("ab")
    for task in tasks:
        driver.arrive(task)
    get = driver.get("d")
    task = driver.only(jobs.RangeJob)
    assert wanted([task]) == ids("d")
    driver.arrive(task)
    assert driver.answers() == {get: jobs.ARRIVED} and driver.tasks == []


def test_no_prefetch(on_demand):
    """With a limit of 0 only entries that need no request are prefetched."""
    on_demand.begin(*apart("ab"), empty_row("e"), missing="abe")
    task = on_demand.only(jobs.RangeJob)
    assert wanted([task]) == ids("e") and task.length == 0
    on_demand.get("b")
    assert wanted(on_demand.take(jobs.RangeJob)) == ids("b")


def test_prefetch_leaves_room_on_the_disk(driver, monkeypatch):
    """A prefetch takes at most 1/DISK_SHARE of the free disk space."""
    monkeypatch.setattr(fetching, "free_bytes", lambda _: 5000 * fetching.DISK_SHARE // 2)
    driver.begin(*apart("abcd", size=1000), missing="abcd")
    assert wanted(driver.take(jobs.RangeJob)) == ids("ab")


def test_prefetch_ends_when_the_store_fails(driver):
    """After a failure of the local store no further range is prefetched."""
    letters = "abcdefghijkl"
    driver.begin(*apart(letters), missing=letters)
    for task in driver.take(jobs.RangeJob):
        driver.fail(task, jobs.LOCAL)
    assert driver.tasks == []


@pytest.mark.parametrize("end", [lambda driver: driver.plan.stop(), lambda driver: driver.finish()])
def test_prefetch_ends_with_the_session(driver, end):
    """No further range is prefetched; ranges that are being fetched answer their gets."""
    letters = "abcdefghijkl"
    driver.begin(*apart(letters), missing=letters)
    get = driver.get("a")
    running = driver.take(jobs.RangeJob)
    end(driver)
    driver.answers()
    for task in running:
        driver.arrive(task)
    assert driver.tasks == [] and driver.answers() == {get: jobs.ARRIVED}
    assert not os.listdir(f"{driver.store.root}/tmp")


@contextmanager
def other_prefetch(root):
    """Hold the lock of a prefetch of the same scope, as another session does."""
    os.makedirs(f"{root}/tmp", exist_ok=True)
    path = f"{root}/tmp/prefetch-{scope_key(SCOPE)}"
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        os.unlink(path)


def test_one_prefetch_at_a_time(tmp_path, driver):
    """While another session prefetches, ranges are fetched on demand; then this one prefetches."""
    with other_prefetch(tmp_path):
        driver.begin(*apart("abcd"), missing="abcd")
        assert driver.tasks == []
        driver.get("b")
        assert wanted(driver.take(jobs.RangeJob)) == ids("b")
    driver.get("c")
    assert wanted(driver.take(jobs.RangeJob)) == ids("cad")


def test_prefetch_lock_is_released(tmp_path, driver):
    """The lock file exists until all ranges are fetched."""
    driver.begin(row("a"), missing="a")
    with pytest.raises(BlockingIOError), other_prefetch(tmp_path):
        pass
    driver.arrive(driver.only(jobs.RangeJob))
    assert os.listdir(tmp_path / "tmp") == []


def test_prefetch_without_a_lock(tmp_path, driver):
    """If the lock file cannot be created, the session prefetches."""
    (tmp_path / "tmp").write_text("in the way")
    driver.begin(row("a"), missing="a")
    assert wanted(driver.take(jobs.RangeJob)) == ids("a")


def test_absent_bundle_is_requested_once(driver):
    """Other ranges of an absent bundle are not fetched, and its entries are misses."""
    letters = "abcdefghijkl"
    far = [row(name, offset=at * (1 << 30)) for at, name in enumerate(letters)]
    driver.begin(*far, missing=letters)
    first, *others = driver.take(jobs.RangeJob)
    driver.arrive(first, status=jobs.DAMAGED, arrived=[], damaged=ids("a"), gone=True)
    assert driver.take(jobs.RangeJob) == [] and len(others) < len(letters) - 1
    number = driver.get("l")
    assert driver.answers() == {number: jobs.MISS}


def test_ended_session_does_not_prefetch(tmp_path):
    """If all sessions have ended when the manifests are loaded, nothing is prefetched."""
    driver = Driver(tmp_path)
    driver.plan.prefetch()
    driver.finish()
    task = driver.only(jobs.LoadJob)
    rows = [tuple(row("a"))]
    driver.plan.done(
        task,
        jobs.LoadResult(
            task.number, jobs.HIT, "", rows, [], [], ["m"], 1e12, ids("a"), False, 0, 0
        ),
    )
    assert driver.take(jobs.RangeJob) == []


@pytest.mark.parametrize("status", [jobs.SKIPPED, jobs.FAILED, jobs.LOST, jobs.TIMED_OUT])
def test_failed_range_is_fetched_whole(driver, status):
    """After a failure a get fetches the whole range again, not its entry alone."""
    driver.begin(row("a"), row("b", offset=200), missing="ab")
    driver.fail(driver.only(jobs.RangeJob), status)
    driver.get("a")
    assert [fields[0] for fields in driver.only(jobs.RangeJob).rows] == ids("ab")


def test_put_whose_bundle_turns_out_absent(driver):
    """A put that was to be named in a bundle is uploaded if the bundle turns out to be absent."""
    driver.begin(row("a"), missing="a")
    task = driver.only(jobs.RangeJob)
    put = driver.put("b", body="a")
    finish = driver.finish("b")
    manifest_task = driver.only(jobs.ManifestJob)
    driver.fail(manifest_task, jobs.FAILED)
    assert driver.answers() == {put: jobs.FAILED, finish: jobs.FAILED}
    put = driver.put("c", body="a")
    driver.arrive(task, status=jobs.DAMAGED, arrived=[], damaged=ids("a"), gone=True)
    finish = driver.finish("c")
    bundle = driver.only(jobs.BundleJob)
    assert [entry[0] for entry in bundle.entries] == ids("c")
    assert driver.answers() == {}
    driver.bundle(bundle)
    assert action_id("c") in names(driver.manifest().rows)
    assert driver.answers() == {put: jobs.STORED, finish: jobs.STORED}
