"""Commands on a machine without free processes or descriptors do not blame the cache directory."""

import errno
import os

import pytest

from cacheplugin.commands import flush, prune
from cacheplugin.errors import UsageError
from cacheplugin.options import Options


@pytest.mark.parametrize(("command", "part"), [(flush, "_upload"), (prune, "_prune")])
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.EACCES])
def test_what_is_to_blame(tmp_path, monkeypatch, command, part, number):
    """Only an error of the directory is a UsageError that names it; main prints the others."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(command, part, fail)
    wanted = UsageError if number == errno.EACCES else OSError
    with pytest.raises(wanted) as caught:
        command.run(Options(cache_dir=str(tmp_path), expiry_s=1.0))
    assert (str(tmp_path) in str(caught.value)) == (number == errno.EACCES)
