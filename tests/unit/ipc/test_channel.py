"""channel.py: messages over real pipes, whole, in parts, and until the end."""

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
    out, into = os.pipe()
    open_fds = {out, into}

    def close(fd):
        open_fds.discard(fd)
        os.close(fd)

    yield out, into, close
    for fd in list(open_fds):
        close(fd)


def receive_all(receiver, sender, count) -> list:
    """Flush and receive in turns until ``count`` messages are there; fails where nothing moves."""
    messages = []
    while len(messages) < count:
        sender.flush()
        readable, _, _ = select.select([receiver.fd], [], [], 5)
        assert readable, "the pipe is empty"
        messages += receiver.receive()
    return messages


@given(st.lists(MESSAGES, max_size=5))
def test_messages_arrive_as_sent(messages):
    """Tuples of plain values arrive equal, in their order."""
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


def test_nothing_there(ends):
    """Receiving from an empty pipe gives nothing and does not wait."""
    out, _, _ = ends
    assert Receiver(out).receive() == []


def test_message_byte_by_byte(ends):
    """A message that arrives in pieces comes out once, when it is whole."""
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
    """What a full pipe does not take waits for flush; sending never blocks and loses nothing."""
    out, into, _ = ends
    sender, receiver = Sender(into), Receiver(out)
    messages = [(number, bytes(1000)) for number in range(500)]
    taken = [sender.send(message) for message in messages]
    assert taken[0] is True and taken[-1] is False
    assert sender.flush() is False
    assert receive_all(receiver, sender, len(messages)) == messages
    assert sender.flush() is True


def test_message_larger_than_the_pipe(ends):
    """One message may be larger than what the pipe holds."""
    out, into, _ = ends
    sender, receiver = Sender(into), Receiver(out)
    message = ("big", os.urandom(1 << 20))
    assert sender.send(message) is False
    assert receive_all(receiver, sender, 1) == [message]


def test_end_of_the_other_side(ends):
    """When the sender is gone, what it sent is received first, then EOFError, again and again."""
    out, into, close = ends
    Sender(into).send(("last", None))
    close(into)
    receiver = Receiver(out)
    assert receiver.receive() == [("last", None)]
    for _ in range(2):
        with pytest.raises(EOFError):
            receiver.receive()


def test_end_in_the_middle_of_a_message(ends):
    """A sender that dies in a message gives no part of it."""
    out, into, close = ends
    Sender(into).send(("whole", 1))
    os.write(into, b"\0\0\0\x20half")
    close(into)
    receiver = Receiver(out)
    assert receiver.receive() == [("whole", 1)]
    with pytest.raises(EOFError):
        receiver.receive()


def test_receiver_is_gone(ends):
    """Sending to nobody is an OSError."""
    out, into, close = ends
    sender = Sender(into)
    close(out)
    with pytest.raises(BrokenPipeError):
        sender.send(("x",))
