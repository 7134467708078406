"""One labelled picture."""

from dataclasses import dataclass
from pathlib import Path

from dfm_mlflow.storage.store import S3Object

GOOD = "good"


@dataclass(frozen=True)
class Item:
    """One picture: where it is, what it shows, and what it is for.

    Attributes
    ----------
    path : Path or S3Object
        Both know ``read_bytes()``, ``name``, ``stem`` and ``suffix``, and ``str()`` names them.
    category : str
        The product.
    split : {"train", "test"}
        What the picture is for.
    label : str
        ``good`` or the name of a defect.
    mask : Path or S3Object, optional
        Where the defect is.
    group : str, optional
        Pictures of the same group are never split between calibration folds.
    """

    path: Path | S3Object
    category: str
    split: str
    label: str
    mask: Path | S3Object | None = None
    group: str | None = None
