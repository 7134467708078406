import os
import socket

import pytest

from dfm_mlflow.serving.monitor.wire import INLINE, pair, receive, send


@pytest.fixture
def ends():
    ours, theirs = pair()
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("size", [0, 10, INLINE, 300_000])
@pytest.mark.parametrize("blobs", [[], [b""], [b"abc", b"", bytes(2_000_000)]])
def test_messages_arrive_whole_apart_and_in_order(ends, size, blobs):
    for i in range(2):
        send(ends[0], {"text": "é" * size, "i": i}, blobs)
    for i in range(2):
        assert receive(ends[1]) == ({"text": "é" * size, "i": i}, blobs)


def test_no_descriptor_is_left_open(ends):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        send(ends[0], {}, [bytes(100_000)])
        receive(ends[1])
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_handed_over_outlives_its_sender(ends):
    child = os.fork()
    if not child:
        for i in range(50):
            send(ends[0], {"i": i}, [bytes([i]) * 50_000])
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    ends[0].close()
    found = [receive(ends[1]) for _ in range(50)]
    assert [message["i"] for message, _ in found] == list(range(50))
    assert found[49][1] == [bytes([49]) * 50_000]
    assert receive(ends[1]) is None


def test_a_full_queue_refuses_at_once_and_a_gone_reader_is_an_error(ends):
    for _ in range(100):  # messages of one picture that wait while the writer is busy
        send(ends[0], {"row": "x" * 500})
    with pytest.raises(BlockingIOError):  # noqa: PT012  # one of them
        for _ in range(100_000):
            send(ends[0], {"row": "x" * 500})
    ends[1].close()
    with pytest.raises(OSError):  # noqa: PT011  # a pipe or a connection, as the kernel has it
        send(ends[0], {})


def test_waiting_ends_with_the_time_of_the_socket(ends):
    ends[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        receive(ends[1])
    assert isinstance(ends[1], socket.socket)
