"""resilient_loop.py: unexpected errors of handlers are logged, but not without limit."""

import logging

import pytest

from cacheplugin.server.resilient_loop import MAX_ERRORS, ResilientLoop


def fail():
    raise KeyError("a defect")


def test_errors_are_logged_and_the_one_after_the_limit_is_raised(caplog):
    """Each logged error comes with its traceback."""
    loop, calls = ResilientLoop(), []
    with caplog.at_level(logging.ERROR):
        for number in range(1, MAX_ERRORS + 1):
            loop.call(fail)
            loop.call(calls.append, number)
            assert f"unexpected error {number}; " in caplog.records[-1].getMessage()
            assert caplog.records[-1].exc_info is not None
        with pytest.raises(KeyError):
            loop.call(fail)
    assert len(calls) == len(caplog.records) == MAX_ERRORS
