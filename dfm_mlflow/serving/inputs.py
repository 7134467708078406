"""Where the pictures of a request are, in whichever form MLflow hands them over."""

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.images.picture import is_null, is_single, listed
from dfm_mlflow.serving.forms import unwrapped

# First bytes of the formats that are read. None of them starts the base64 text of another one.
_MAGIC = (
    *(b"\x89PNG", b"\xff\xd8", b"BM", b"II*\0", b"MM\0*", b"RIFF"),
    *(b"P5\n", b"P5 ", b"P5\t", b"P5\r", b"P6\n", b"P6 ", b"P6\t", b"P6\r"),
)
_LONGEST_NAME = 4096  # of a file, in characters


def column_of(model_input: Any) -> tuple[list[Any], pd.Index | None]:
    """Find the pictures of an input, and the index of the table that they came in."""
    if isinstance(model_input, pd.DataFrame):
        if "image" in model_input.columns:
            return model_input["image"].tolist(), model_input.index
        if model_input.shape[1] == 1:
            return model_input.iloc[:, 0].tolist(), model_input.index
    elif isinstance(model_input, pd.Series):
        return model_input.tolist(), model_input.index
    elif isinstance(model_input, dict) and "image" in model_input:
        given = model_input["image"]
        return [given] if is_single(given) else _flat(given), None
    elif isinstance(model_input, list | tuple | np.ndarray) or is_single(model_input):
        return _flat(model_input), None
    raise ConfigError("The input has no column 'image': send the pictures under that name.")


def _flat(pictures: Any) -> list[Any]:
    if isinstance(pictures, np.ndarray) and pictures.dtype == object:
        return list(pictures.ravel())
    return listed(pictures)


def to_picture(value: Any, *, files: bool) -> Any:
    """Take a value of a request, or of a table in this process, for what it is."""
    value = unwrapped(value)
    if is_null(value):
        return None
    if isinstance(value, str):
        coded = value.encode("ascii", "replace")
        data = _from_base64(coded, broken=True)
        if files and _names_a_file(value, data):
            return Path(value)
        return coded if data is None else data
    if isinstance(value, bytes | bytearray | memoryview):
        given = bytes(value)
        data = _from_base64(given)
        if data is None and not _known(given):
            data = _from_base64(given, broken=True)
        return given if data is None else data  # the decoder says what is wrong with it
    return value


def _names_a_file(text: str, decoded: bytes | None) -> bool:
    """Whether text is the name of a file rather than base64."""
    if not text or len(text) > _LONGEST_NAME:
        return False
    return decoded is None or (not _known(decoded) and os.path.isfile(text))


def _known(data: bytes) -> bool:
    return data.startswith(_MAGIC)


def _from_base64(text: bytes, *, broken: bool = False) -> bytes | None:
    """Decode base64, which `base64` breaks into lines; None where it is something else."""
    try:
        return base64.b64decode(b"".join(text.split()) if broken else text, validate=True)
    except binascii.Error:
        return None
