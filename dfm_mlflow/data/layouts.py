"""How pictures are laid out in the folders of one category: one recogniser each.

A recogniser gets the pictures below the category's folder and says what each one is, or why it is
not used, without opening any; or it gives None, and the next one is asked. What a name does not
say is refused with the options that settle it, never guessed.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.data.names import (
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
    may_be_either,
    means_bad,
    means_good,
)
from dfm_mlflow.data.roles import OPEN, Layout, Role
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.store import S3Folder, S3Object
from dfm_mlflow.storage.walk import File


def recognise(root: Path | S3Folder, pictures: Sequence[File]) -> Layout | None:
    """Say what each picture is, by the first recogniser that knows the layout."""
    for recogniser in RECOGNISERS:
        if layout := recogniser(root, pictures):
            return layout
    return None


def visa(root: Path | S3Folder, pictures: Sequence[File]) -> Layout | None:
    """VisA: ``Data/Images/Normal`` and ``Anomaly``, with ``split_csv/1cls.csv`` beside."""
    inside = [f for f in pictures if [n.casefold() for n in f.folders[:2]] == ["data", "images"]]
    table = _split_of_visa(root) if inside else None
    if table is None:
        return None
    layout = Layout("VisA's split_csv/1cls.csv")
    for file in pictures:
        role = table.get(file.place.casefold())
        if role:
            layout.roles[file.place] = role
        else:
            layout.unused[file.place] = "not in split_csv/1cls.csv"
    return layout if layout.roles else None


def splits(root: Path | S3Folder, pictures: Sequence[File]) -> Layout | None:
    """MVTec AD, MVTec LOCO, BTAD: ``train/good``, ``validation/good``, ``test/<label>``."""
    to_fit, known = TRAIN_NAMES | VALIDATION_NAMES, TRAIN_NAMES | VALIDATION_NAMES | TEST_NAMES
    tops = {f.folders[0].casefold() for f in pictures if f.folders} & known
    if not tops:
        return None
    beside = {f.folders[1] for f in pictures if len(f.folders) > 1}
    layout = Layout(" and ".join(sorted(tops, key=[*sorted(to_fit), *sorted(TEST_NAMES)].index)))
    not_good: dict[str, int] = defaultdict(int)
    for file in pictures:
        top = file.folders[0].casefold() if file.folders else ""
        name = file.folders[1] if len(file.folders) > 1 else ""
        folder = "/".join(file.folders[:2])
        if top not in known:
            layout.unused[file.place] = f"beside {layout.said}"
        elif not name:
            layout.unused[file.place] = f"directly in {folder}, where no folder labels them"
        elif means_good(name, beside):
            layout.roles[file.place] = Role("train" if top in to_fit else "test", GOOD)
        elif top in to_fit:
            not_good[folder] += 1
        elif may_be_either(name, beside):
            raise _either(root, folder)
        else:
            layout.roles[file.place] = Role("test", name)
    if not_good:
        raise _not_good(root, sorted(not_good))
    _refuse_bare(root, pictures, layout, to_fit)
    return layout


def side_by_side(root: Path | S3Folder, pictures: Sequence[File]) -> Layout | None:
    """``good`` and ``bad`` beside each other, at any depth; ``bad`` may have kinds below it."""
    names: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in pictures:
        for i, name in enumerate(file.folders):
            names[file.folders[:i]].add(name)
    layout = Layout("good and bad side by side")
    for file in pictures:
        for i, name in enumerate(file.folders):
            beside = names[file.folders[:i]]
            if means_good(name, beside):
                layout.roles[file.place] = Role(OPEN, GOOD)
                break
            if means_bad(name, beside):
                kind = next(iter(file.folders[i + 1 :]), name)
                layout.roles[file.place] = Role("test", name if means_good(kind) else kind)
                break
            if any(means_good(n, beside) or means_bad(n, beside) for n in beside):
                raise _either(root, "/".join(file.folders[: i + 1]))
        else:
            layout.unused[file.place] = "in no folder that is called good or bad"
    return layout if layout.roles else None


def flat(root: Path | S3Folder, pictures: Sequence[File]) -> Layout | None:
    """Pictures in the folder itself, all of them good."""
    layout = Layout("one folder of good pictures")
    for file in pictures:
        if file.folders:
            layout.unused[file.place] = "in subfolders"
        else:
            layout.roles[file.place] = Role("train", GOOD)
    return layout if layout.roles else None


RECOGNISERS: tuple[Callable[[Path | S3Folder, Sequence[File]], Layout | None], ...] = (
    visa,
    splits,
    side_by_side,
    flat,
)


def _split_of_visa(root: Path | S3Folder) -> dict[str, Role] | None:
    """Roles by place, in lower case; None without the table."""
    above = S3Folder(root.uri.rpartition("/")[0]) if isinstance(root, S3Folder) else root.parent
    folder = above / "split_csv"
    if not folder.is_dir():
        return None
    there = [f for f in folder.iterdir() if isinstance(f, Path | S3Object)]
    table = next((f for f in there if f.name == "1cls.csv"), None)
    if table is None:
        return None
    found = {}
    for row in csv.DictReader(io.StringIO(table.read_bytes().decode("utf-8-sig"))):
        category, _, place = row.get("image", "").partition("/")
        split, label = row.get("split", ""), row.get("label", "")
        if category == root.name and split in ("train", "test") and label:
            found[place.casefold()] = Role(split, GOOD if means_good(label) else label)
    return found


def _either(root: Path | S3Folder, folder: str) -> DataError:
    return DataError(
        f"The name of the folder {root}/{folder} does not say whether its pictures are good or "
        f"defective: give good={folder} or bad={folder}."
    )


def _not_good(root: Path | S3Folder, folders: list[str]) -> DataError:
    named = ",".join(folders)
    return DataError(
        f"The model is fitted on good pictures alone, and the name of {root}/"
        f"{f', {root}/'.join(folders)} does not say that its are: give good={named} if they are, "
        f"or bad={named} to test on them as defective."
    )


def _refuse_bare(
    root: Path | S3Folder, pictures: Sequence[File], layout: Layout, to_fit: set[str]
) -> None:
    """Refuse pictures to fit on that lie in ``train`` itself, where no folder says ``good``."""
    bare = [f for f in pictures if len(f.folders) == 1 and f.folders[0].casefold() in to_fit]
    if bare and Role("train", GOOD) not in layout.roles.values():
        folder = bare[0].folders[0]
        raise DataError(
            f"{root}/{folder} holds {len(bare)} pictures and no folder {GOOD}: give good={folder} "
            "if all below it are good."
        )
