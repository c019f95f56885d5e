"""Unit tests of web/modproxy/download.py: readers before, during and after a download."""

import asyncio
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.errors import FileMismatch, UpstreamError
from cacheplugin.store.cache import Draft, LocalCache
from cacheplugin.store.tree import Store
from cacheplugin.web.modproxy import download as module
from cacheplugin.web.modproxy.download import HELD_BACK_BYTES, Download
from cacheplugin.web.modproxy.names import parse
from entries import files, read

ZIP, INFO = parse("example.com/a/@v/v1.0.0.zip", ()), parse("example.com/a/@v/v1.0.0.info", ())
BODY = bytes(range(256)) * 1024  # four times HELD_BACK_BYTES


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


@pytest.fixture
def make(cache):
    """make(name=ZIP): a Download of that name."""
    return lambda name=ZIP: Download(name, Draft(cache))


def leftovers(cache) -> list:
    """The names of the temporary files."""
    return [*files(f"{cache.store.root}/tmp")]


async def let_others_run() -> None:
    """Let all other tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


class Reader:
    """A client that reads a download: ``got`` is its content, ``error`` what ended it early."""

    def __init__(self, download) -> None:
        self.got, self.pieces, self.error = b"", 0, None
        self.task = asyncio.ensure_future(self._read(download))

    async def _read(self, download) -> None:
        try:
            with download:
                async for data in download.chunks():
                    assert data
                    self.got += data
                    self.pieces += 1
        except UpstreamError as error:
            self.error = error


# -- zips: readable while they are fetched ---------------------------------------------------------


def test_readers_before_during_and_after(make, cache):
    """Each reader gets the whole content from the beginning, in order."""

    async def main():
        download = make()
        before = Reader(download)
        await let_others_run()
        assert before.got == b""
        download.write(BODY[:150_000])
        during = Reader(download)
        await let_others_run()
        assert before.got == during.got == BODY[: 150_000 - HELD_BACK_BYTES]
        with download:  # keeps the file past the end of the download
            download.write(BODY[150_000:])
            download.finish()
            after = Reader(download)
            await asyncio.gather(before.task, during.task, after.task)
        assert before.got == during.got == after.got == BODY
        assert download.length == download.size == len(BODY)

    asyncio.run(main())
    assert leftovers(cache) == []


def test_the_end_of_a_zip_is_held_back(make):
    """Until the zip was checked, readers never get the last HELD_BACK_BYTES of what was written."""

    async def main():
        download = make()
        reader = Reader(download)
        sent = 0
        for size in (1, HELD_BACK_BYTES - 1, 1, 1, 1000, 1, 100_000):
            download.write(BODY[sent : sent + size])
            sent += size
            await let_others_run()
            assert len(reader.got) == max(0, sent - HELD_BACK_BYTES)
        download.announce(sent)
        await let_others_run()
        assert len(reader.got) == sent - HELD_BACK_BYTES and not reader.task.done()
        download.finish()
        await reader.task
        assert reader.got == BODY[:sent]

    asyncio.run(main())


def test_a_late_reader_gets_pieces(make, monkeypatch):
    """A reader that comes late does not read the file in one piece."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1000)

    async def main():
        download = make()
        download.write(BODY)
        reader = Reader(download)
        await let_others_run()
        download.finish()
        await reader.task
        assert reader.got == BODY and reader.pieces >= len(BODY) / 1000

    asyncio.run(main())


@pytest.mark.parametrize("name", [ZIP, INFO], ids=lambda name: name.kind)
def test_an_error_reaches_all_readers(make, cache, name):
    """All readers, present and late, get the error, and none gets the end of the file."""
    error = UpstreamError("it broke off", 504)

    async def main():
        download = make(name)
        readers = [Reader(download) for _ in range(3)]
        download.write(BODY)
        await let_others_run()
        with download:
            download.finish(error)
            readers.append(Reader(download))
            await asyncio.gather(*(reader.task for reader in readers))
            for wait in (download.wait_complete, download.wait_length):
                with pytest.raises(UpstreamError) as caught:
                    await wait()
                assert caught.value is error
        shown = len(BODY) - HELD_BACK_BYTES if name is ZIP else 0
        assert all(reader.error is error and len(reader.got) <= shown for reader in readers)

    asyncio.run(main())
    assert leftovers(cache) == []


def test_empty_files(make, cache):
    """A download without any write is complete and empty."""

    async def main():
        for name in (ZIP, INFO):
            download = make(name)
            reader = Reader(download)
            await let_others_run()
            with download:
                download.finish()
                await reader.task
                assert (reader.got, reader.error) == (b"", None)
                assert (download.read_all(), download.length) == (b"", 0)

    asyncio.run(main())
    assert leftovers(cache) == []


@given(st.lists(st.integers(1, 90_000), max_size=8), st.integers(0, 8))
def test_any_pieces_make_the_same_file(tmp_path_factory, sizes, when):
    """The content is the same for any sizes of writes and any time at which a reader comes."""
    cache = LocalCache(Store(str(tmp_path_factory.getbasetemp() / "pieces")))
    body = (BODY * 3)[: sum(sizes)]

    async def main():
        download, sent, readers = Download(ZIP, Draft(cache)), 0, []
        with download:
            for number, size in enumerate(sizes):
                if number == when:
                    readers.append(Reader(download))
                download.write(body[sent : sent + size])
                sent += size
                await asyncio.sleep(0)
            download.finish()
            readers.append(Reader(download))
            await asyncio.gather(*(reader.task for reader in readers))
        assert [reader.got for reader in readers] == [body] * len(readers)

    asyncio.run(main())
    assert leftovers(cache) == []


# -- other files: readable when they are complete --------------------------------------------------


def test_other_files_are_read_when_complete(make):
    """Readers get nothing before the file was checked."""

    async def main():
        download = make(INFO)
        reader, waiter = Reader(download), asyncio.ensure_future(download.wait_complete())
        download.announce(len(BODY))
        download.write(BODY)
        await let_others_run()
        assert reader.got == b"" and not waiter.done()
        with download:
            download.finish()
            await asyncio.gather(reader.task, waiter)
            assert reader.got == download.read_all() == BODY

    asyncio.run(main())


def test_wait_length(make):
    """wait_length returns when the length was announced, or when the download ends."""

    async def main():
        download = make()
        waiter = asyncio.ensure_future(download.wait_length())
        download.announce(None)
        download.write(BODY)
        await let_others_run()
        assert not waiter.done()
        download.announce(len(BODY))
        await waiter
        assert download.length == len(BODY)
        other = make()
        waiter = asyncio.ensure_future(other.wait_length())
        await let_others_run()
        other.write(b"x")
        other.finish()
        await waiter
        assert other.length == 1
        download.finish()

    asyncio.run(main())


def test_a_changed_length_is_refused(make):
    """Announcing the same length again is fine; another length means another file."""
    download = make()
    download.announce(None)
    download.announce(10)
    download.announce(10)
    for length in (9, 11, 0):
        with pytest.raises(FileMismatch, match=f"its length changed from 10 to {length} bytes"):
            download.announce(length)
    assert download.length == 10


def test_an_unknown_length_keeps_the_announced_one(make):
    """A response without a length does not change what clients were told."""
    download = make()
    download.announce(10)
    download.announce(None)
    assert download.length == 10
    with pytest.raises(FileMismatch):
        download.announce(11)


# -- restarts, and files that are taken over -------------------------------------------------------


def test_restart(make, cache):
    """A restart drops the content and the announced length."""

    async def main():
        for name, body in ((ZIP, BODY[:HELD_BACK_BYTES]), (INFO, BODY)):
            download = make(name)
            reader = Reader(download)
            assert download.restart() is True  # also before the first write
            download.announce(len(body))
            download.write(body)
            await let_others_run()
            assert download.restart() is True
            assert (download.size, download.length) == (0, None)
            download.announce(3)
            download.write(b"new")
            download.finish()
            await reader.task
            assert reader.got == b"new" and download.length == 3

    asyncio.run(main())
    assert leftovers(cache) == []


def test_no_restart_after_bytes_were_readable(make):
    """A restart is refused once readers may have bytes of the file."""

    async def main():
        download = make()
        reader = Reader(download)
        await let_others_run()
        download.write(BODY[: HELD_BACK_BYTES + 1])
        assert download.restart() is False
        assert download.size == HELD_BACK_BYTES + 1
        download.write(BODY[HELD_BACK_BYTES + 1 :])
        download.finish()
        assert download.restart() is False
        await reader.task
        assert reader.got == BODY

    asyncio.run(main())


@pytest.mark.parametrize("before", [b"", b"what was here before, which was longer"])
@pytest.mark.parametrize("name", [ZIP, INFO], ids=lambda name: name.kind)
def test_take_over(make, cache, name, before):
    """The download uses the other Draft's file, and its own is removed with that Draft."""

    async def main():
        download = make(name)
        reader = Reader(download)
        if before:
            download.write(before)
        with Draft(cache) as draft:
            with open(draft.open().path, "wb") as file:
                file.write(b"from elsewhere")
            download.take_over(draft)
        assert len(leftovers(cache)) == 1
        with download:
            download.finish()
            await reader.task
            assert reader.got == b"from elsewhere" and download.length == download.size == 14

    asyncio.run(main())
    assert leftovers(cache) == []


def test_take_over_from_another_store(make, cache, tmp_path):
    """The download's store becomes that of the other Draft."""
    other = LocalCache(Store(str(tmp_path / "other")))
    download = make()
    download.write(b"x")
    with Draft(other) as draft:
        draft.write(b"from elsewhere")
        download.take_over(draft)
        assert download.draft.store is other.store and draft.store is cache.store
        assert leftovers(cache)
    assert not leftovers(cache) and download.read_all() == b"from elsewhere"
    download.finish()
    assert not leftovers(other)


# -- clean-up --------------------------------------------------------------------------------------


def is_open(fd) -> bool:
    try:
        os.fstat(fd)
        return True
    except OSError as error:
        assert error.errno == errno.EBADF
        return False


@pytest.mark.parametrize("error", [None, UpstreamError("why")])
def test_the_file_is_removed_with_the_last_reader(make, cache, error):
    """The file is removed after the end of the download and of the last reader, in any order."""
    for order in ("finish first", "readers first", "no readers"):
        download = make()
        download.write(BODY)
        fd = download.draft.temp.fd
        if order == "finish first":
            with download:
                with download:
                    download.finish(error)
                    assert is_open(fd)
                assert is_open(fd)
        elif order == "readers first":
            with download:
                pass
            assert is_open(fd)
            download.finish(error)
        else:
            download.finish(error)
        assert not is_open(fd) and leftovers(cache) == []
        with download:  # a client that got hold of it just before
            assert download.read_all() == b""


def test_a_cancelled_reader_leaves_the_others(make, cache):
    """The others still get the whole file."""

    async def main():
        download = make()
        gone, stays = Reader(download), Reader(download)
        download.write(BODY)
        await let_others_run()
        gone.task.cancel()
        await asyncio.gather(gone.task, return_exceptions=True)
        download.finish()
        await stays.task
        assert stays.got == BODY

    asyncio.run(main())
    assert leftovers(cache) == []


def test_a_stored_file_stays_readable(make, cache):
    """After it was renamed, readers go on, and the end of the download does not remove it."""

    async def main():
        download = make()
        reader = Reader(download)
        download.write(BODY)
        await let_others_run()
        path = f"{cache.store.root}/module/ab/abc"
        download.draft.temp.rename(path)
        download.finish()
        await reader.task
        assert reader.got == BODY == read(path)
        assert not is_open(download.draft.temp.fd if download.draft.temp else -1)

    asyncio.run(main())
    assert [*files(cache.store.root)] == ["module/ab/abc"]


def test_a_full_store_during_a_download(make, cache, tmp_path, monkeypatch):
    """The download goes on in the session store, and readers notice nothing."""
    (tmp_path / "tmpdir").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmpdir"))

    async def main():
        download = make()
        reader = Reader(download)
        download.write(BODY[:100_000])
        await let_others_run()
        write, failures = type(download.draft.temp).write, [OSError(errno.EROFS, "read-only")]

        def fails_once(temp, data):
            if failures:
                raise failures.pop()
            write(temp, data)

        monkeypatch.setattr(type(download.draft.temp), "write", fails_once)
        download.write(BODY[100_000:])
        assert download.draft.store is cache.session_store
        download.finish()
        await reader.task
        assert reader.got == BODY

    asyncio.run(main())
    assert leftovers(cache) == [] and files(f"{cache.session_store.root}/tmp") == {}
    os.close(cache._session_dir._lock)


def test_no_store_can_take_a_write(make, cache, monkeypatch):
    """``write`` raises OSError and leaves the size as it was."""
    download = make()
    download.write(b"abc")

    def fails(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(cache, "_spill", False)
    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(OSError, match="broken"):
        download.write(b"def")
    assert download.size == 3 and os.pread(download.draft.temp.fd, 9, 0) == b"abc"
    download.finish(UpstreamError("why"))
    assert leftovers(cache) == []
