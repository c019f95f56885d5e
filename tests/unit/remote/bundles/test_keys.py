"""remote/bundles/keys.py: names of bundles and manifests, and the key of a scope."""

from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.remote.bundles.keys import new_name, scope_key

NOW_S = 1_800_000_000
TIMES = st.floats(0, 4e9)


@given(TIMES, TIMES)
def test_names_sort_newest_first(one, other):
    """All names have the same length, and later ones sort first."""
    names = [new_name(now_s, "00ff") for now_s in sorted((one, other))]
    assert {len(name) for name in names} == {17}
    assert names[0] >= names[1]
    if abs(one - other) >= 0.001:
        assert names[0] > names[1]


def test_names_of_the_same_time():
    """The unique part follows the time."""
    first, second = new_name(NOW_S, "01"), new_name(NOW_S, "02")
    assert first.split("-") == [second.split("-")[0], "01"]


@given(st.text(st.characters(codec="utf-8")))
def test_scope_key(scope):
    """The key of any scope is 16 hex digits, the same each time."""
    key = scope_key(scope)
    assert len(key) == 16 and not set(key) - set("0123456789abcdef")
    assert key == scope_key(scope) != scope_key(scope + "x")
