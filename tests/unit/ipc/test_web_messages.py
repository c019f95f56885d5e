"""web_messages.py: requests as plain tuples and back."""

import pytest

from cacheplugin.ipc.web_messages import (
    BusyNotice,
    FetchRequest,
    SnapshotRequest,
    UploadRequest,
    pack,
    unpack,
)


@pytest.mark.parametrize(
    "request_, fields",
    [
        (SnapshotRequest(1), ("snapshot", 1)),
        (FetchRequest(2, "key", "/path", 3), ("fetch", 2, "key", "/path", 3)),
        (UploadRequest(3, "key", "/path", True), ("upload", 3, "key", "/path", True)),
        (BusyNotice(0, False), ("busy", 0, False)),
    ],
)
def test_each_request_crosses_unchanged(request_, fields):
    """``pack`` gives a plain tuple, as marshal refuses others; ``unpack`` restores the class."""
    packed = pack(request_)
    assert packed == fields and type(packed) is tuple
    assert unpack(packed) == request_ and type(unpack(packed)) is type(request_)
