"""Opens the bodies on the local disk that are to be uploaded."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..errors import Unreadable
from ..store.contents import open_file

if TYPE_CHECKING:
    from io import FileIO

_NOT_OF_A_BODY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def open_body(path: str) -> FileIO:
    """A body, open for reading; raises OSError, also for a link.

    Does not wait for a writer if another program has put a pipe there: the body is then empty.
    """
    return open(path, "rb", buffering=0, opener=lambda path, _: open_file(path))


def unreadable(path: str, error: OSError) -> Unreadable:
    """The error for a body that cannot be read.

    Raises ``error`` if it is one of the process, which would meet the other bodies as well.
    """
    if error.errno in _NOT_OF_A_BODY:
        raise error
    return Unreadable(path, error)
