"""channel.py: messages over real pipes."""

import os
import select

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.ipc.channel import Receiver, Sender

PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary())
MESSAGES = st.lists(PLAIN, max_size=4).map(tuple)


@pytest.fixture
def ends():
    """(read end, write end, a function that closes one of them)"""
    out, into = os.pipe()
    open_fds = {out, into}

    def close(fd):
        open_fds.discard(fd)
        os.close(fd)

    yield out, into, close
    for fd in list(open_fds):
        close(fd)


def receive_all(receiver, sender, count) -> list:
    """Flush and receive until ``count`` messages have arrived; fails if the pipe stays empty."""
    messages = []
    while len(messages) < count:
        sender.flush()
        readable, _, _ = select.select([receiver.fd], [], [], 5)
        assert readable, "the pipe is empty"
        messages += receiver.receive()
    return messages


@given(st.lists(MESSAGES, max_size=5))
def test_messages_arrive_as_sent(messages):
    """Tuples of plain values arrive unchanged and in order."""
    out, into = os.pipe()
    try:
        sender, receiver = Sender(into), Receiver(out)
        for message in messages:
            assert sender.send(message) is True
        assert receive_all(receiver, sender, len(messages)) == messages
        assert receiver.receive() == []
    finally:
        os.close(out)
        os.close(into)


def test_empty_pipe(ends):
    """receive does not wait: an empty pipe gives no messages."""
    out, _, _ = ends
    assert Receiver(out).receive() == []


def test_message_byte_by_byte(ends):
    """A message that arrives in pieces is returned once, when it is complete."""
    out, into, _ = ends
    sender, receiver = Sender(into), Receiver(out)
    sender.send(("one", 1))
    sender.send(("two", 2))
    data = os.read(out, 1000)
    received = []
    for index in range(len(data)):
        os.write(into, data[index : index + 1])
        messages = receiver.receive()
        received += [(index, message) for message in messages]
    ends_at = 4 + int.from_bytes(data[:4], "big") - 1
    assert received == [(ends_at, ("one", 1)), (len(data) - 1, ("two", 2))]


def test_full_pipe(ends):
    """send never blocks; what a full pipe does not take is sent by flush later."""
    out, into, _ = ends
    sender, receiver = Sender(into), Receiver(out)
    messages = [(number, bytes(1000)) for number in range(500)]
    taken = [sender.send(message) for message in messages]
    assert taken[0] is True and taken[-1] is False
    assert sender.flush() is False
    assert receive_all(receiver, sender, len(messages)) == messages
    assert sender.flush() is True


def test_message_larger_than_the_pipe(ends):
    """A message may be larger than the capacity of the pipe."""
    out, into, _ = ends
    sender, receiver = Sender(into), Receiver(out)
    message = ("big", os.urandom(1 << 20))
    assert sender.send(message) is False
    assert receive_all(receiver, sender, 1) == [message]


def test_sender_is_closed(ends):
    """Messages sent before the end are received first; then every receive raises EOFError."""
    out, into, close = ends
    Sender(into).send(("last", None))
    close(into)
    receiver = Receiver(out)
    assert receiver.receive() == [("last", None)]
    for _ in range(2):
        with pytest.raises(EOFError):
            receiver.receive()


def test_sender_is_closed_in_a_message(ends):
    """A message that is not complete at the end is dropped."""
    out, into, close = ends
    Sender(into).send(("whole", 1))
    os.write(into, b"\0\0\0\x20half")
    close(into)
    receiver = Receiver(out)
    assert receiver.receive() == [("whole", 1)]
    with pytest.raises(EOFError):
        receiver.receive()


def test_receiver_is_closed(ends):
    """send raises an OSError if the read end is closed."""
    out, into, close = ends
    sender = Sender(into)
    close(out)
    with pytest.raises(BrokenPipeError):
        sender.send(("x",))
