"""Paths that somebody wrote or a disk holds, refused in a sentence before they are used."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from dfm_mlflow.errors import DataError

_MISSING = (errno.ENOENT, errno.ENOTDIR)  # whoever needs it will say so
_MOST = 200  # characters of a name in a message


def local_path(address: str) -> Path:
    """Give the path of an `address` on this machine, which need not exist."""
    try:
        path = Path(address).expanduser()
        path.lstat()
    except RuntimeError:
        raise DataError(
            f"{shown(address)} begins with a user who has no home here: write the folder out."
        ) from None
    except ValueError:  # a NUL, or half of a character
        raise DataError(
            f"{shown(address)} holds a character that no path can: correct it."
        ) from None
    except OSError as error:
        if error.errno not in _MISSING:
            raise DataError(
                f"{shown(address)} cannot be used as a path ({error.strerror}): correct it."
            ) from None
    return path


def check_names(names: Iterable[str]) -> None:
    """Refuse `names` that are no text: results, reports and tables hold only text."""
    for name in names:
        if "\0" in name or not _is_text(name):
            raise DataError(f"The name {shown(name)} is not UTF-8: rename it.")


def shown(name: str) -> str:
    """Give a `name` as a message can hold it: short, and every odd byte escaped."""
    try:
        data = os.fsencode(name)
    except UnicodeEncodeError:  # half of a character, which no file system gave
        data = name.encode("utf-8", "backslashreplace")
    text = data.replace(b"\0", b"\\x00").decode("utf-8", "backslashreplace")
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
