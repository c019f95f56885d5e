"""web/modproxy/download.py: readers before, during and after; nothing stays open or behind."""

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
BODY = bytes(range(256)) * 1024  # four times what is held back


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


@pytest.fixture
def make(cache):
    """Makes Downloads of a zip, or of what is asked for."""
    return lambda name=ZIP: Download(name, Draft(cache))


def leftovers(cache) -> list:
    return [*files(f"{cache.store.root}/tmp")]


async def turn() -> None:
    """Let all others go on as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Reader:
    """A client: ``got`` is what it has, ``error`` how it ended if not well."""

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


# -- zips, which can be read while they come -------------------------------------------------------


def test_readers_before_during_and_after(make, cache):
    """Each gets all of it, from the beginning, in order."""

    async def main():
        download = make()
        before = Reader(download)
        await turn()
        assert before.got == b""
        download.write(BODY[:150_000])
        during = Reader(download)
        await turn()
        assert before.got == during.got == BODY[: 150_000 - HELD_BACK_BYTES]
        with download:  # somebody holds it while it ends
            download.write(BODY[150_000:])
            download.finish()
            after = Reader(download)
            await asyncio.gather(before.task, during.task, after.task)
        assert before.got == during.got == after.got == BODY
        assert download.length == download.size == len(BODY)

    asyncio.run(main())
    assert leftovers(cache) == []


def test_the_end_of_a_zip_is_held_back(make):
    """Until it was found right, however much of it is there; up to so many bytes, all of it."""

    async def main():
        download = make()
        reader = Reader(download)
        sent = 0
        for size in (1, HELD_BACK_BYTES - 1, 1, 1, 1000, 1, 100_000):
            download.write(BODY[sent : sent + size])
            sent += size
            await turn()
            assert len(reader.got) == max(0, sent - HELD_BACK_BYTES)
        download.announce(sent)
        await turn()
        assert len(reader.got) == sent - HELD_BACK_BYTES and not reader.task.done()
        download.finish()
        await reader.task
        assert reader.got == BODY[:sent]

    asyncio.run(main())


def test_pieces_are_no_larger_than_memory_allows(make, monkeypatch):
    """One that comes late reads it piece by piece."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1000)

    async def main():
        download = make()
        download.write(BODY)
        reader = Reader(download)
        await turn()
        download.finish()
        await reader.task
        assert reader.got == BODY and reader.pieces >= len(BODY) / 1000

    asyncio.run(main())


@pytest.mark.parametrize("name", [ZIP, INFO], ids=lambda name: name.kind)
def test_error_while_it_is_read(make, cache, name):
    """All who read it hear of it, and nobody gets the end; whoever comes then hears it as well."""
    error = UpstreamError("it broke off", 504)

    async def main():
        download = make(name)
        readers = [Reader(download) for _ in range(3)]
        download.write(BODY)
        await turn()
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
    """They are whole without one write."""

    async def main():
        for name in (ZIP, INFO):
            download = make(name)
            reader = Reader(download)
            await turn()
            with download:
                download.finish()
                await reader.task
                assert (reader.got, reader.error) == (b"", None)
                assert (download.read_all(), download.length) == (b"", 0)

    asyncio.run(main())
    assert leftovers(cache) == []


@given(st.lists(st.integers(1, 90_000), max_size=8), st.integers(0, 8))
def test_any_pieces_make_the_same_file(tmp_path_factory, sizes, when):
    """Whatever sizes it comes in, and whenever a reader comes."""
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


# -- other files, which are read when they are whole -----------------------------------------------


def test_other_files_are_read_when_they_are_whole(make):
    """Not one byte before, as nothing of them was checked."""

    async def main():
        download = make(INFO)
        reader, waiter = Reader(download), asyncio.ensure_future(download.wait_complete())
        download.announce(len(BODY))
        download.write(BODY)
        await turn()
        assert reader.got == b"" and not waiter.done()
        with download:
            download.finish()
            await asyncio.gather(reader.task, waiter)
            assert reader.got == download.read_all() == BODY

    asyncio.run(main())


def test_begun(make):
    """Its length is known as soon as somebody says it, or with its end."""

    async def main():
        download = make()
        waiter = asyncio.ensure_future(download.wait_length())
        download.announce(None)
        download.write(BODY)
        await turn()
        assert not waiter.done()
        download.announce(len(BODY))
        await waiter
        assert download.length == len(BODY)
        other = make()
        waiter = asyncio.ensure_future(other.wait_length())
        await turn()
        other.write(b"x")
        other.finish()
        await waiter
        assert other.length == 1
        download.finish()

    asyncio.run(main())


def test_announce(make):
    """The same length again is none of anybody's business, another one is another file."""
    download = make()
    download.announce(None)
    download.announce(10)
    download.announce(10)
    for length in (9, 11, 0):
        with pytest.raises(FileMismatch, match=f"its length changed from 10 to {length} bytes"):
            download.announce(length)
    assert download.length == 10


def test_announced_stays_announced(make):
    """Clients were told: that an answer says nothing about it does not change it."""
    download = make()
    download.announce(10)
    download.announce(None)
    assert download.length == 10
    with pytest.raises(FileMismatch):
        download.announce(11)


# -- what is begun again, or comes from elsewhere --------------------------------------------------


def test_forget(make, cache):
    """It begins anew, and nothing of what was there stays, not even its length."""

    async def main():
        for name, body in ((ZIP, BODY[:HELD_BACK_BYTES]), (INFO, BODY)):
            download = make(name)
            reader = Reader(download)
            assert download.restart() is True  # before the first write as well
            download.announce(len(body))
            download.write(body)
            await turn()
            assert download.restart() is True
            assert (download.size, download.length) == (0, None)
            download.announce(3)
            download.write(b"new")
            download.finish()
            await reader.task
            assert reader.got == b"new" and download.length == 3

    asyncio.run(main())
    assert leftovers(cache) == []


def test_what_may_have_been_read_is_not_forgotten(make):
    """Clients could not be given another beginning."""

    async def main():
        download = make()
        reader = Reader(download)
        await turn()
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
    """The other Draft's file is this one's, and its own goes with the other."""

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


def test_take_over_what_went_to_another_store(make, cache, tmp_path):
    """Where it is kept follows."""
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


# -- what is left ----------------------------------------------------------------------------------


def is_open(fd) -> bool:
    try:
        os.fstat(fd)
        return True
    except OSError as error:
        assert error.errno == errno.EBADF
        return False


@pytest.mark.parametrize("error", [None, UpstreamError("why")])
def test_its_file_goes_with_the_last_of_all(make, cache, error):
    """With its end, or with the last reader, whichever is later, and once."""
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
        with download:  # somebody who found it a moment ago
            assert download.read_all() == b""


def test_readers_that_go_away(make, cache):
    """One that is cancelled leaves the others alone, and the file to them."""

    async def main():
        download = make()
        gone, stays = Reader(download), Reader(download)
        download.write(BODY)
        await turn()
        gone.task.cancel()
        await asyncio.gather(gone.task, return_exceptions=True)
        download.finish()
        await stays.task
        assert stays.got == BODY

    asyncio.run(main())
    assert leftovers(cache) == []


def test_a_file_that_is_kept_is_read_on(make, cache):
    """It has another name by then, and stays."""

    async def main():
        download = make()
        reader = Reader(download)
        download.write(BODY)
        await turn()
        path = f"{cache.store.root}/module/ab/abc"
        download.draft.temp.rename(path)
        download.finish()
        await reader.task
        assert reader.got == BODY == read(path)
        assert not is_open(download.draft.temp.fd if download.draft.temp else -1)

    asyncio.run(main())
    assert [*files(cache.store.root)] == ["module/ab/abc"]


def test_a_store_that_is_full_meanwhile(make, cache, tmp_path, monkeypatch):
    """It goes on in the session's, and its readers notice nothing."""
    (tmp_path / "tmpdir").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmpdir"))

    async def main():
        download = make()
        reader = Reader(download)
        download.write(BODY[:100_000])
        await turn()
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


def test_no_disk_takes_it(make, cache, monkeypatch):
    """That is an OSError for who writes; what is there is as long as it was."""
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
