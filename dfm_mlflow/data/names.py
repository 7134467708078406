"""What the names of folders, labels and files say, and which say nothing."""

import os
from collections.abc import Iterable
from pathlib import Path

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.storage.store import SCHEME, S3Folder, folder
from dfm_mlflow.storage.walk import File

EXTENSIONS = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".pgm",
    ".ppm",
}
# Pictures that are not read, with what to do; each by its extension.
_CONVERT = "convert to JPEG"
_LOSSLESS = "convert to PNG or TIFF"
UNREAD = {
    **dict.fromkeys((".heic", ".heif", ".avif", ".gif", ".jp2", ".j2k", ".jxl"), _CONVERT),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw"), _LOSSLESS),
}
# All in lower case, since case never matters.
GOOD_NAMES = {"good", "ok", "normal"}
BAD_NAMES = {
    *("bad", "ko", "nok", "ng", "not_ok", "not_good", "abnormal", "anomaly", "anomalies"),
    *("anomalous", "defect", "defects", "defective", "fault", "faulty", "scrap", "reject"),
}
# Said of good pictures by some and of defective ones by others, or of both.
EITHER_NAMES = {
    *("0", "1", "true", "false", "yes", "no", "positive", "negative", "pos", "neg", "p", "n"),
    *("pass", "passed", "fail", "failed", "accept", "accepted", "fine", "clean", "correct"),
    *("nominal", "regular", "reference", "golden", "golden_sample", "io", "nio", "gut"),
    *("goods", "good_images", "undamaged", "healthy", "intact", "perfect", "no_defect"),
    *("no_defects", "nodefect", "non_defective", "nondefective", "defect_free", "anomaly_free"),
    *("unlabelled", "unlabeled", "unknown", "mixed", "all", "images", "image", "img", "data"),
}
TRAIN_NAMES = {"train", "training"}
VALIDATION_NAMES = {"validation", "valid", "val"}
TEST_NAMES = {"test", "testing"}
MASK_FOLDERS = {"ground_truth", "groundtruth", "gt", "masks", "mask"}


def means_good(name: str, beside: Iterable[str] = ()) -> bool:
    """Whether a label or the name of a folder says that pictures are good."""
    return name.casefold() in GOOD_NAMES or (name == "0" and "1" in beside)


def means_bad(name: str, beside: Iterable[str] = ()) -> bool:
    """Whether a label or the name of a folder says that pictures are defective."""
    return name.casefold() in BAD_NAMES or (name == "1" and "0" in beside)


def may_be_either(name: str, beside: Iterable[str] = ()) -> bool:
    """Whether a name is used for good pictures by some and for defective ones by others."""
    if means_good(name, beside) or means_bad(name, beside):
        return False
    return name.casefold().replace(" ", "_").replace("-", "_") in EITHER_NAMES


def label_of(name: str, beside: Iterable[str] = ()) -> str:
    """Give the label that a name stands for: ``good``, or itself."""
    return GOOD if means_good(name, beside) else name


def is_picture(file: File) -> bool:
    """Whether a `file` ends like a picture that is read; case never matters."""
    return file.suffix in EXTENSIONS


def is_any_picture(file: File) -> bool:
    """Whether a `file` ends like a picture, read or not."""
    return file.suffix in EXTENSIONS or file.suffix in UNREAD


def in_mask_folder(file: File) -> bool:
    """Whether a `file` lies in a folder that is called as folders of masks are."""
    return any(name.casefold() in MASK_FOLDERS for name in file.folders)


_FAR = (SCHEME, "/")


class Named:
    """Folders, or labels of a manifest, that an option names."""

    def __init__(self, given: str) -> None:
        parts = [] if given == "auto" else [part.strip().rstrip("/") for part in given.split(",")]
        self.names: tuple[str, ...] = tuple(os.path.expanduser(part) for part in parts if part)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __contains__(self, label: object) -> bool:
        return label in self.names

    def far(self) -> list[Path | S3Folder]:
        """Those that are absolute: folders anywhere, and ``s3://`` prefixes."""
        return [folder(n) for n in self.names if n.startswith(_FAR)]

    def depth(self, folders: tuple[str, ...]) -> int:
        """How many of the folders above a file lead to the one that is named; 0 where none is."""
        inside = "/".join(folders) + "/"
        found = 0
        for name in self.names:
            if name.startswith(_FAR):
                found = max(found, int(folders[:1] == (name,)))
            elif inside.startswith(f"{name}/"):
                found = max(found, name.count("/") + 1)
            elif name in folders:
                found = max(found, len(folders) - folders[::-1].index(name))
        return found
