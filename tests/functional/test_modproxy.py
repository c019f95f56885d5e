"""The module proxy by itself: what is asked, from where it comes, what is kept."""
import pytest
from module_proxy import LEAF, OLD, ROOT, path_of

pytest_plugins = ["modproxy_fixtures"]


@pytest.mark.parametrize("kind", ["info", "mod", "zip"])
def test_a_file_comes_from_upstream_once_and_then_from_disk(modproxy, upstream, kind):
    proxy, path = modproxy(), path_of(LEAF, kind)
    first = proxy.get(path)
    assert first.status == 200 and first.body == getattr(LEAF, kind)
    again = proxy.get(path)
    assert again.body == first.body and "immutable" in again.headers["Cache-Control"]
    assert upstream.count(path) == 1
    assert proxy.counts()["get_local_hit"] == 1 and proxy.counts()["get_local_miss"] == 1
    upstream.close()
    assert proxy.get(path).body == first.body


def test_lists_come_from_upstream_and_from_disk_where_that_is_down(modproxy, upstream):
    proxy = modproxy("--modproxy-max-age=0")
    assert proxy.get("/example.test/root/@v/list").text.split() == [OLD.version, ROOT.version]
    upstream.fail("503")
    assert proxy.get("/example.test/root/@v/list").text.split() == [OLD.version, ROOT.version]
    assert proxy.counts()["get_stale"] == 1
    assert proxy.get("/example.test/!leaf/@v/list").status == 502
