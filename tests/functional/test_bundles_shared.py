"""The layout bundles among many: scopes, prefetches, sessions that end at once."""

from bundle_sessions import asked, expect_all, fill, in_bundles, keys, noise, put_all, some
from helpers import action_id, temporaries, wait_until

# -- scopes ----------------------------------------------------------------------------------------


def test_a_scope_without_a_set_starts_from_another_scopes(machine, fake_s3):
    """And leaves a manifest of its own, which names what it used where it lies already."""
    ours, more = some(6, "ours"), some(6, "more")
    fill(machine("a"), ours | more)
    plugin = machine("b", "--scope=theirs")
    expect_all(plugin, ours)
    assert plugin.finish()["get_fault_hit"] == 6
    assert len(keys(fake_s3, "bundle")) == 1 and len(keys(fake_s3, "manifest")) == 2
    asked(fake_s3)
    plugin = machine("c", "--scope=theirs")
    expect_all(plugin, ours)
    plugin.expect_miss(action_id("more 4"))
    assert plugin.finish()["get_fault_hit"] == 6
    assert len(asked(fake_s3)) == 3


def test_a_scope_with_a_set_of_its_own_sees_no_other(machine):
    fill(machine("a"), {action_id("a"): b"ours", action_id("b"): b"ours too"})
    fill(machine("b", "--scope=theirs"), {action_id("a"): b"theirs"})
    for scope, body in (("ours", b"ours"), ("theirs", b"theirs")):
        plugin = machine(f"fresh {scope}", f"--scope={scope}")
        plugin.expect_hit(action_id("a"), body)
        plugin.finish()
    plugin = machine("fresh theirs", "--scope=theirs")
    plugin.expect_miss(action_id("b"))
    plugin.finish()


def test_what_another_scope_has_as_well_is_named_in_both(machine, flush_of):
    """Two branches made the same action, and the first is uploaded last, by a flush."""
    shared, own = {action_id("shared"): b"body"}, {action_id("own"): b"own"}
    fill(machine("a", "--upload=off", "--scope=first"), shared | own)
    fill(machine("b", "--scope=second"), shared)
    assert flush_of("a") == (0, 2, 0)
    plugin = machine("c", "--scope=first")
    expect_all(plugin, shared | own)
    assert plugin.finish()["get_fault_hit"] == 2


# -- prefetching -----------------------------------------------------------------------------------


def test_prefetch_limit_0_serves_gets_on_demand(machine, fake_s3):
    """Nothing comes that nobody asked for."""
    puts = noise(3, 2 << 20)  # ranges of their own
    fill(machine("a"), puts)
    plugin = machine("b", "--prefetch-limit=0")
    plugin.expect_miss(action_id("unknown"))  # the manifests are here
    assert in_bundles(fake_s3) == 0
    plugin.expect_hit(*list(puts.items())[1])
    counts = plugin.finish()
    assert counts["get_fault_hit"] == 1 and counts["get_fault_bytes"] < 3 << 20
    assert in_bundles(fake_s3) == 1


def test_the_prefetch_limit_is_that_of_the_session(machine, fake_s3):
    """Gets bring what they ask for, and do not have the limit begin anew."""
    puts = noise(4, 2 << 20)
    fill(machine("a"), puts)
    plugin = machine("b", "--prefetch-limit=3MiB")
    plugin.expect_miss(action_id("unknown"))
    wait_until(lambda: in_bundles(fake_s3) == 1, "the one that is prefetched")
    plugin.expect_hit(*list(puts.items())[1])
    assert in_bundles(fake_s3) == 2
    assert plugin.finish()["get_fault_bytes"] < 5 << 20


def test_two_sessions_on_one_empty_directory_fetch_it_once(machine, fake_s3, tmp_path):
    """One prefetches; what it brings serves both."""
    puts = noise(8, 1 << 20)
    fill(machine("a"), puts)
    asked(fake_s3)
    expect_all(alone := machine("alone"), puts)
    alone.finish()
    ranges = in_bundles(fake_s3)
    asked(fake_s3)

    fake_s3.hold = lambda method, key: key.startswith("bundle/")
    first = machine("b")
    wait_until(lambda: fake_s3.held == ranges, "the first one's prefetch")
    second = machine("b")
    second.expect_miss(action_id("unknown"))  # it knows the manifests
    assert fake_s3.held == ranges
    fake_s3.release()
    expect_all(first, puts)
    expect_all(second, puts)
    assert second.finish()["get_fault_hit"] == first.finish()["get_fault_hit"] == 8
    assert in_bundles(fake_s3) == ranges > 1
    assert not temporaries(tmp_path / "b")


def test_ten_sessions_that_end_at_once_lose_nothing(machine, fake_s3):
    """None knows of the others; the next sees what all of them put, and sums it up."""
    everything, plugins = {}, []
    for n in range(10):
        plugins.append(machine(f"machine {n}"))
        plugins[-1].expect_miss(action_id("unknown"))  # it has seen an empty bucket
    for n, plugin in enumerate(plugins):
        puts = some(4, f"of {n}") | {action_id(f"shared by {n}"): b"the same body"}
        put_all(plugin, puts)
        everything |= puts
    numbers = [plugin.close() for plugin in plugins]
    for plugin, number in zip(plugins, numbers):
        assert plugin.answer(number) == {"ID": number}
    assert len(keys(fake_s3, "manifest")) == len(keys(fake_s3, "bundle")) == 10
    plugin = machine("next")
    expect_all(plugin, everything)
    put_all(plugin, {action_id("more"): b"more"})
    counts = plugin.finish()
    assert counts["get_fault_hit"] == len(everything) == 50 and "get_misses" not in counts
    asked(fake_s3)
    plugin = machine("last")
    expect_all(plugin, everything)
    plugin.finish()
    assert len([key for _, key in asked(fake_s3) if key.startswith("manifest/")]) == 1
