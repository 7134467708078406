"""One labelled picture."""

from dataclasses import dataclass
from pathlib import Path

from dfm_mlflow.images.limits import MAX_PIXELS
from dfm_mlflow.storage.store import S3Object

GOOD = "good"


@dataclass(frozen=True)
class Mask:
    """Where the defects of one picture are."""

    # One, or several that are laid over each other; ``str()`` has ``|`` between them, as a manifest
    # does.
    files: tuple[Path | S3Object, ...]
    max_pixels: int = MAX_PIXELS  # limit of each

    def __str__(self) -> str:
        return "|".join(map(str, self.files))


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
    mask : Mask, optional
        Where the defects are.
    group : str, optional
        Pictures of the same group are never split between calibration folds.
    part : str, optional
        Pictures of the same part, such as its views, get one decision.
    excluded : str, optional
        Why nothing is fitted to it, though it is a training picture.
    """

    path: Path | S3Object
    category: str
    split: str
    label: str
    mask: Mask | None = None
    group: str | None = None
    part: str | None = None
    excluded: str | None = None
