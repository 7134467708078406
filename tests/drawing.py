"""Charts, most of a small training: only tests that look at them have them drawn."""

from contextlib import contextmanager

import pytest
from PIL import Image

from dfm_mlflow.report.charts import Charts

_DRAW = Charts.draw


def _leave_out(self, name, size, paint, png=True):
    if png:
        Image.new("L", (1, 1)).save(self._folder / f"{name}.png")
    return "<svg></svg>"


@contextmanager
def _with(draw):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Charts, "draw", draw)
        yield


def drawn():
    """Draw charts as users see them."""
    return _with(_DRAW)


def left_out():
    """Leave charts empty."""
    return _with(_leave_out)
