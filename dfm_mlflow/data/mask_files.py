"""Which masks belong to which pictures, by their names."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfm_mlflow.data.item import Mask
from dfm_mlflow.data.names import MASK_FOLDERS, Named, in_mask_folder, is_picture
from dfm_mlflow.storage.store import S3Object
from dfm_mlflow.storage.walk import File

SUFFIX = "_mask"  # of a name, before the ending


@dataclass(frozen=True)
class Masks:
    """Masks of the pictures of a folder."""

    of: dict[str, Mask]  # by the place of the picture
    unmatched: list[str]  # places of the masks that match no picture
    n: int  # files in all


def apart(files: Iterable[File], named: Named) -> tuple[list[File], list[File]]:
    """Tell masks from pictures.

    Masks lie in a folder that is called as such, in one that is named, or beside their picture,
    with ``_mask`` at the end of the name.
    """
    files = list(files)
    there = {(file.folders, _stem(file)) for file in files if is_picture(file)}
    masks: list[File] = []
    others: list[File] = []
    for file in files:
        beside = (file.folders, _stem(file).removesuffix(SUFFIX)) in there
        is_mask = in_mask_folder(file) or named.depth(file.folders) > 0
        is_mask |= is_picture(file) and _stem(file).endswith(SUFFIX) and beside
        (masks if is_mask else others).append(file)
    return masks, others


def match(masks: Sequence[File], pictures: Sequence[tuple[File, str]]) -> Masks:
    """Find the picture of each mask.

    The names are the same, or the mask's ends with ``_mask``, under any ending and case; or the
    mask lies in a folder that is called as the picture (MVTec LOCO). Labels are folders of both.
    """
    by_stem: dict[str, list[int]] = defaultdict(list)
    for i, (file, _) in enumerate(pictures):
        by_stem[_stem(file)].append(i)
    labels = {label.casefold() for _, label in pictures}
    found: dict[str, list[Path | S3Object]] = defaultdict(list)
    unmatched: list[str] = []
    for mask in masks:
        mine = _picture_of(mask, pictures, by_stem, labels) if is_picture(mask) else None
        if mine is None:
            unmatched.append(mask.place)
        else:
            found[pictures[mine][0].place].append(mask.source)
    of = {place: Mask(tuple(files)) for place, files in found.items()}
    return Masks(of, unmatched, len(masks))


def _picture_of(
    mask: File,
    pictures: Sequence[tuple[File, str]],
    by_stem: dict[str, list[int]],
    labels: set[str],
) -> int | None:
    above = [name.casefold() for name in mask.folders]
    stem, last = _stem(mask), above[-1] if above else ""
    in_own_folder = last in by_stem and last not in labels | MASK_FOLDERS
    candidates = by_stem.get(last if in_own_folder else stem, [])
    if not candidates:
        candidates = by_stem.get(stem.removesuffix(SUFFIX), [])
    if labels & set(above):
        candidates = [i for i in candidates if pictures[i][1].casefold() in above]

    def shared(i: int) -> int:
        return len({name.casefold() for name in pictures[i][0].folders} & set(above))

    most = max(map(shared, candidates), default=0)
    best = [i for i in candidates if shared(i) == most]
    return best[0] if len(best) == 1 else None


def _stem(file: File) -> str:
    return Path(file.name).stem.casefold()
