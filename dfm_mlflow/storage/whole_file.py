"""Files that others read appear whole or not at all."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfm_mlflow.errors import DataError

DRAFT = ".tmp-"  # how the name of an unfinished file starts


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Give a name to write to, beside `path`, which becomes `path` if nothing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{DRAFT}{uuid.uuid4().hex}{path.suffix}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write `path` as :func:`draft_of` does, and say in one sentence what cannot be written."""
    try:
        with draft_of(path) as draft:
            yield draft
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}): check its folder and the space "
            "there."
        ) from None
