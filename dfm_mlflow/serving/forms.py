"""What JSON makes of a picture on its way through MLflow: TensorFlow's form, and nested lists."""

import re
from typing import Any

import numpy as np

# TensorFlow Serving writes {"b64": ...}; a column of bytes turns the dict into its text.
_B64 = re.compile(rb"""\{\s*['"]b64['"]\s*:\s*['"]([A-Za-z0-9+/=\s\\n]*)['"]\s*\}""")
_KEY = "b64"


def unwrapped(value: Any) -> Any:
    """Give the picture that a value of a request means."""
    if isinstance(value, dict):
        return value[_KEY] if set(value) == {_KEY} else value
    if isinstance(value, bytes):
        found = _B64.fullmatch(value) if value[:1] == b"{" else None
        return found[1].replace(b"\\n", b"") if found else value
    if isinstance(value, str) and value[:1] == "{":
        found = _B64.fullmatch(value.encode("ascii", "replace"))
        return found[1].replace(b"\\n", b"") if found else value
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        value = value.tolist()
    if isinstance(value, list):
        if len(value) == 1 and not isinstance(value[0], list):
            return unwrapped(value[0])
        return _pixels(value)
    return value


def _pixels(rows: list[Any]) -> Any:
    """Take nested lists of values for an image; what are none stay as they are."""
    try:
        array = np.asarray(rows)
        if array.dtype.kind in "SU":  # a column of bytes turns numbers into their text
            array = array.astype(np.int64)
    except (ValueError, TypeError, OverflowError):  # of unequal lengths, or no numbers
        return rows
    if array.ndim not in (2, 3) or array.dtype.kind not in "iu" or not array.size:
        return rows
    if array.min() < 0 or array.max() > 255:
        return rows
    return array.astype(np.uint8)
