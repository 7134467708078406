"""Messages between a server's worker and the process that writes its log.

A message is JSON on a socket that keeps messages apart. What is large (pictures, many rows) lies
in an anonymous file in memory whose descriptor goes along. So a worker hands a row over with one
system call, before it answers, and what it has handed over outlives it.
"""

import array
import json
import os
import socket
import tempfile
from collections.abc import Sequence
from typing import Any

INLINE = 32 * 1024  # bytes of a message that needs no file
_MOST = 64 * 1024


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that keeps messages apart, with as long a queue as is allowed."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return ends


def send(end: socket.socket, message: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Send a message, at once or not at all."""
    text = json.dumps(message, separators=(",", ":")).encode()
    if not blobs and len(text) <= INLINE:
        end.send(text, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return
    head = json.dumps({"text": len(text), "blobs": [len(b) for b in blobs]}).encode()
    file = _anonymous()
    try:
        for part in (text, *blobs):
            _write_all(file, part)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))]
        end.sendmsg([head], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        os.close(file)


def receive(end: socket.socket) -> tuple[dict[str, Any], list[bytes]] | None:
    """Wait for a message."""
    try:
        data, files, _, _ = socket.recv_fds(end, _MOST, 1)
    except ConnectionError:
        return None
    if not data:
        return None
    head: dict[str, Any] = json.loads(data)
    if not files:
        return head, []
    try:
        whole = memoryview(_read_all(files[0]))
    finally:
        os.close(files[0])
    at, blobs = head["text"], []
    for size in head["blobs"]:
        blobs.append(bytes(whole[at : at + size]))
        at += size
    return json.loads(bytes(whole[: head["text"]])), blobs


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("dfm-log")
    with tempfile.TemporaryFile() as file:  # has no name, and ends with its last descriptor
        return os.dup(file.fileno())


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _read_all(file: int) -> bytes:
    size = os.lseek(file, 0, os.SEEK_END)
    os.lseek(file, 0, os.SEEK_SET)
    parts = []
    while size > 0 and (part := os.read(file, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
