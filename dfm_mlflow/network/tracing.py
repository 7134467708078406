"""Keep torch.fx's tracing and forward passes of other threads apart.

While torch.fx traces, it replaces ``torch.nn.Module.__call__`` for the whole process: another trace
beside it leaves the replacement behind for ever, and a forward pass beside it is taken for part of
the traced network. Loading a model traces; a server that scores with one may load another.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_changed = threading.Condition()
_running = 0
_tracing = False


@contextmanager
def tracing() -> Iterator[None]:
    """Hold off forward passes and other traces; waits for those that are under way."""
    global _tracing
    with _changed:
        _changed.wait_for(lambda: not _tracing)
        _tracing = True  # from here on no new forward pass starts
        _changed.wait_for(lambda: not _running)
    try:
        yield
    finally:
        with _changed:
            _tracing = False
            _changed.notify_all()


@contextmanager
def running() -> Iterator[None]:
    """Hold off traces; forward passes do not wait for each other."""
    global _running
    with _changed:
        _changed.wait_for(lambda: not _tracing)
        _running += 1
    try:
        yield
    finally:
        with _changed:
            _running -= 1
            _changed.notify_all()
