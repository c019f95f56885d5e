"""Strikes one call of the program: the process is killed there, or the call fails with an errno.

``install`` puts guards in place of the functions with which the program uses files. It has to run
before the program's modules are imported, because some of them bind these functions by name. Guards
do nothing but call the function until ``begin`` has been called.

A point says what is struck: ``<effect> <role> <call> <place> <number>``. ``ENOSPC worker pwrite tmp
3`` lets the third pwrite that workers make to files below tmp/ fail. All workers of a run count
together, also those that replace a killed one, so each point strikes once.
"""

import builtins
import errno
import fcntl
import io
import os
import signal
from collections import namedtuple
from pathlib import Path

KILLS = ("kill-before", "kill-after")
ERRNOS = ("ENOSPC", "EIO", "EMFILE", "EACCES", "ENOLCK")

# Calls by how they say which file they are about: the position of a path or descriptor.
_AT = {
    **dict.fromkeys(("open", "stat", "lstat", "mkdir", "rmdir", "unlink", "remove"), 0),
    **dict.fromkeys(("chmod", "utime", "truncate", "listdir", "scandir", "fstat", "fsync"), 0),
    **dict.fromkeys(("read", "pread", "write", "pwrite", "ftruncate", "sendfile"), 0),
    **dict.fromkeys(("link", "rename", "replace"), 1),
}
_PROCESS = ("pipe", "dup", "fork", "posix_spawn")  # calls that are about no file
_CHANGING = {
    *("open-new", "write", "pwrite", "sendfile", "ftruncate", "truncate", "link", "rename"),
    *("replace", "unlink", "remove", "mkdir", "rmdir", "utime", "chmod", "fsync", "flock"),
}
_NEW = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_SPOOL_FILES = ("journal", "ending", "target", "lock", "failed")

_open, _write, _lseek, _close, _readlink = os.open, os.write, os.lseek, os.close, os.readlink
_plain_open = io.open
plain_fork = os.fork
_run = None  # the _Run of this process, None if nothing is counted


class Point(namedtuple("Point", "effect role call place number")):
    """What is struck; ``str`` and ``parse`` convert to and from the text of the module's head."""

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> "Point":
        effect, role, call, place, number = text.split()
        return cls(effect, role, call, place, int(number))


def points(trace: Path, effects) -> list:
    """The points of a run without a strike, whose counts are in the directory ``trace``."""
    found = []
    for path in sorted(trace.iterdir()):
        role, call, place = path.name.split(" ")
        for number in range(1, path.stat().st_size + 1):
            found += [
                Point(effect, role, call, place, number)
                for effect in effects
                if _is_possible(effect, call, place)
            ]
    return found


def _is_possible(effect, call, place) -> bool:
    if effect in KILLS:
        return call in _CHANGING
    return place != "pipe" and (place not in ("elsewhere", "process") or effect == "EMFILE")


class _Run:
    """The counts of one run: files in ``trace``, which grow by one byte with each call.

    Appending to a file is atomic, so processes and threads need no lock, which a kill could leave
    locked.
    """

    def __init__(self, home: str, trace: str, role: str, point) -> None:
        self.home, self.trace, self.role, self._point = home, trace, role, point

    def count(self, call: str, place: str):
        """Count a call; returns the effect that strikes it, None for most calls."""
        path = f"{self.trace}/{self.role} {call} {place}"
        fd = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, b".")
            number = _lseek(fd, 0, os.SEEK_CUR)
        finally:
            _close(fd)
        point = self._point
        if point is None or (self.role, call, place, number) != point[1:]:
            return None
        _close(_open(f"{self.trace}-struck", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return point.effect


def begin(home: str, trace: str, role: str, point) -> None:
    """Count the calls of this process and its children in the directory ``trace``.

    ``home`` holds the directories cache/ and tmp/ of the run. ``point``: a Point or None.
    """
    global _run
    _run = _Run(home, trace, role, point)


def set_role(role: str) -> None:
    if _run is not None:
        _run.role = role


def _after_fork() -> None:
    if _run is not None and _run.role == "pool":
        _run.role = "worker"


def _guarded(call: str, place, function):
    """Return ``function()``, unless this call is struck."""
    effect = _run.count(call, place)
    if effect is None:
        return function()
    if effect == "kill-after":
        function()
    if effect in KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    number = getattr(errno, effect)
    raise OSError(number, os.strerror(number), f"struck: {call} {place}")


class _Guard:
    """Stands in for a function; an instance, which does not become a method in a class."""

    def __init__(self, name: str, function) -> None:
        self._name, self._function, self._at = name, function, _AT.get(name)

    def __call__(self, *args, **kwargs):
        if _run is None:
            return self._function(*args, **kwargs)
        call = self._name
        if self._at is None:
            place = "process"
        else:
            place = _place(args[self._at], kwargs.get("dir_fd")) if args else "elsewhere"
            if call == "open":
                call = "open-new" if args[1] & _NEW else "open-old"
        if not _counts(call, place):
            return self._function(*args, **kwargs)
        return _guarded(call, place, lambda: self._function(*args, **kwargs))


def _counts(call: str, place: str) -> bool:
    if place == "pipe":
        return call == "write"
    return place != "elsewhere" or call in ("open-new", "open-old", "scandir")


def _place(argument, dir_fd=None) -> str:
    """The kind of file that a path or descriptor stands for."""
    try:
        if isinstance(argument, int):
            path = _readlink(f"/proc/self/fd/{argument}")
        else:
            path = os.fsdecode(argument)
            if dir_fd is not None:
                path = os.path.join(_readlink(f"/proc/self/fd/{dir_fd}"), path)
    except OSError:
        return "elsewhere"
    if path.startswith("pipe:"):
        return "pipe"
    home = f"{_run.home}/"
    if not path.startswith(home):
        return "elsewhere"
    top, *below = path[len(home) :].removesuffix(" (deleted)").rstrip("/").split("/")
    if top == "tmp":
        return "session-store"
    if top != "cache":
        return "elsewhere"
    return _place_in_cache(below)


def _place_in_cache(names) -> str:
    kind = names[0] if names else ""
    if kind == "spool":
        if names[-1] in _SPOOL_FILES:
            return f"spool-{names[-1]}"
        return "spool-body" if len(names) == 4 else "spool-directory"
    if kind in ("action", "output"):
        return kind if len(names) == 3 else f"{kind}-directory"
    if kind in ("tmp", "open"):
        return kind if len(names) == 2 else f"{kind}-directory"
    return "other-file" if kind else "cache-directory"


class _RawFile(io.FileIO):
    """An unbuffered file whose reads are counted."""

    def read(self, size=-1):
        return self._guarded(lambda: super(_RawFile, self).read(size))

    def readinto(self, buffer):
        return self._guarded(lambda: super(_RawFile, self).readinto(buffer))

    def _guarded(self, function):
        place = "elsewhere" if _run is None else _place(self.fileno())
        return function() if place == "elsewhere" else _guarded("file-read", place, function)


def _open_file(file, mode="r", buffering=-1, *args, **kwargs):
    """In place of the function ``open``."""
    if _run is None:
        return _plain_open(file, mode, buffering, *args, **kwargs)
    place = _place(file)

    def plain():
        if buffering == 0 and mode == "rb":
            return _RawFile(file, mode, *args, **kwargs)
        return _plain_open(file, mode, buffering, *args, **kwargs)

    call = "open-new" if set(mode) & set("wax+") else "open-old"
    if isinstance(file, int) or not _counts(call, place):
        return plain()
    return _guarded(call, place, plain)


def install() -> None:
    """Put guards in place of the functions, and count the calls of forked processes."""
    for name in (*_AT, *_PROCESS):
        function = getattr(os, name)
        guard = _Guard(name, function)
        setattr(os, name, guard)
        for supporting in (
            os.supports_dir_fd,
            os.supports_fd,
            os.supports_follow_symlinks,
            os.supports_effective_ids,
        ):
            if function in supporting:  # shutil asks what a function can do
                supporting.add(guard)
    fcntl.flock = _flock_guard(fcntl.flock)
    builtins.open = io.open = _open_file
    os.register_at_fork(after_in_child=_after_fork)


def _flock_guard(flock):
    def guarded(fd, operation):
        place = "elsewhere" if _run is None else _place(fd)
        if place == "elsewhere":
            return flock(fd, operation)
        return _guarded("flock", place, lambda: flock(fd, operation))

    return guarded
