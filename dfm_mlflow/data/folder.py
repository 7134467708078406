"""From the folder of one category to labelled items, and an account of every file below it."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfm_mlflow.data import mask_files
from dfm_mlflow.data.accounting import Account, count, reason_of, used_of
from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.data.layouts import recognise
from dfm_mlflow.data.names import (
    EXTENSIONS,
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
    Named,
    is_any_picture,
    is_picture,
    means_good,
)
from dfm_mlflow.data.roles import OPEN, Layout, Role, deal
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.store import S3Folder
from dfm_mlflow.storage.walk import NOWHERE, File, Walk, walk

MOST_UNUSED = 0.5  # of the pictures of a category
_MOST_NAMED = 5
_NOT_NAMED = "in folders that neither good= nor bad= names"


@dataclass(frozen=True)
class Naming:
    """Folders whose pictures an option says what they are, from the category's folder on."""

    good: Named
    bad: Named
    masks: Named

    @classmethod
    def of(cls, good: str = "auto", bad: str = "auto", masks: str = "auto") -> "Naming":
        """Read the options of these names."""
        return cls(Named(good), Named(bad), Named(masks))

    def __bool__(self) -> bool:
        return bool(self.good or self.bad or self.masks)

    def below(self, root: Path | S3Folder) -> "Naming":
        """Write absolute folders below a `root` as relative ones."""
        head = f"{str(root) if isinstance(root, S3Folder) else os.path.abspath(root)}/"
        parts = (self.good, self.bad, self.masks)
        return Naming(*(Named(",".join(n.removeprefix(head) for n in p.names)) for p in parts))


def read_folder(
    root: Path | S3Folder, category: str, naming: Naming, *, all_tested: bool = False
) -> tuple[list[Item], Account]:
    """List the pictures of one category, in the order of their places."""
    naming = naming.below(root)
    walked = _with_far(walk(root), naming)
    masks, others = mask_files.apart(walked.files, naming.masks)
    pictures = [file for file in others if is_picture(file)]
    _check_named(root, naming, walked.files)
    layout = deal(_layout(root, pictures, naming), pictures, all_tested=all_tested)
    if not layout.roles:
        raise _nothing(root, others)
    tested = [
        (file, role.label)
        for file in pictures
        if (role := layout.roles.get(file.place)) and role.split == "test"
    ]
    matched = mask_files.match(masks, tested)
    items = [
        Item(file.source, category, role.split, role.label, matched.of.get(file.place))
        for file in pictures
        if (role := layout.roles.get(file.place))
    ]
    reasons = [why for file in others if (why := reason_of(file) or layout.unused.get(file.place))]
    reasons += _unmatched(matched, tested)
    n_missed = sum(map(is_any_picture, others)) - len(items)
    n_missed += len(matched.unmatched) + walked.left_out[NOWHERE]
    unused = count(reasons, walked.left_out)
    account = Account(used_of(category, items, layout.said), unused, n_missed)
    _check_share(root, others, len(items), account)
    return items, account


def _with_far(walked: Walk, naming: Naming) -> Walk:
    """Add what lies in named folders elsewhere; their places begin with their address."""
    files, left_out = list(walked.files), Counter(walked.left_out)
    for folder in [f for part in (naming.good, naming.bad, naming.masks) for f in part.far()]:
        if not folder.is_dir():
            raise DataError(f"The folder {folder} does not exist: correct good=, bad= or masks=.")
        far = walk(folder)
        files += [File((str(folder), *file.folders), file.source) for file in far.files]
        left_out.update(far.left_out)
    return Walk(files, left_out)


def _layout(root: Path | S3Folder, pictures: Sequence[File], naming: Naming) -> Layout:
    """What is named is what it is named; the recognisers say the rest."""
    named = {file.place: role for file in pictures if (role := _named_role(root, file, naming))}
    rest = [file for file in pictures if file.place not in named]
    # Who names both has named all: then nothing is left to recognise.
    whole = naming.good and naming.bad
    found = None if whole or not rest else recognise(root, rest)
    if not named:
        return found or Layout("")
    kinds = {_kind(role) for role in named.values()}
    layout = Layout("folders named by good= and bad=" if whole else "with folders that are named")
    if found is not None:
        layout = replace(layout, said=f"{found.said}, {layout.said}")
    for file in rest:
        role = found.roles.get(file.place) if found else None
        if role and _kind(role) not in kinds:
            layout.roles[file.place] = role
        else:
            why = found.unused.get(file.place) if found else None
            layout.unused[file.place] = why or _NOT_NAMED
    layout.roles.update(named)
    return layout


def _kind(role: Role) -> str:
    if role.label != GOOD:
        return "bad"
    return "good to test on" if role.split == "test" else "good"


def _named_role(root: Path | S3Folder, file: File, naming: Naming) -> Role | None:
    good, bad = naming.good.depth(file.folders), naming.bad.depth(file.folders)
    if good and good == bad:
        raise DataError(
            f"good= and bad= both name {root}/{'/'.join(file.folders[:good])}: name it once."
        )
    if good > bad:
        names = {name.casefold() for name in file.folders}
        if names & TEST_NAMES:
            return Role("test", GOOD)
        return Role("train" if names & (TRAIN_NAMES | VALIDATION_NAMES) else OPEN, GOOD)
    if bad:
        kind = [*file.folders[bad:], file.folders[bad - 1].rstrip("/").rpartition("/")[2]][0]
        return Role("test", "defective" if means_good(kind) else kind)
    return None


def _check_named(root: Path | S3Folder, naming: Naming, files: Sequence[File]) -> None:
    for option in ("good", "bad", "masks"):
        for name in getattr(naming, option).names:
            if not any(Named(name).depth(file.folders) for file in files):
                tops = sorted({file.folders[0] for file in files if file.folders})
                raise DataError(
                    f"{option}={name} names no folder with files below {root}: it holds "
                    f"{_shown(tops) or 'no folders'}."
                )


def _check_share(
    root: Path | S3Folder, others: Sequence[File], n_used: int, account: Account
) -> None:
    n = sum(map(is_any_picture, others))
    if n - n_used > MOST_UNUSED * n:
        raise DataError(
            f"{n - n_used} of {n} pictures below {root} would not be used ({account.left()}): put "
            "them where they count, or name their folders with good=, bad= or masks=."
        )


def _nothing(root: Path | S3Folder, files: Sequence[File]) -> DataError:
    folders = Counter("/".join(file.folders) or "." for file in files if is_any_picture(file))
    if not any(map(is_picture, files)):
        unread = Counter(why for f in files if is_any_picture(f) and (why := reason_of(f)))
        held = [f"{n} {why}" for why, n in unread.items()]
        names = sorted({file.folders[0] if file.folders else file.name for file in files})
        return DataError(
            f"{root} holds no pictures ({', '.join(sorted(EXTENSIONS))}): it holds "
            f"{', '.join(held) or _shown(names) or 'nothing'}."
        )
    listed = _shown([f"{name} ({n})" for name, n in sorted(folders.items())])
    return DataError(
        f"No name says which pictures below {root} are good: they lie in {listed}; give "
        f"good={sorted(folders)[0]} or whichever holds good ones, and bad= for defective ones."
    )


def _unmatched(found: mask_files.Masks, tested: Sequence[tuple[File, str]]) -> list[str]:
    """Say of each mask without a picture that it has none."""
    if not found.unmatched:
        return []
    why = f"of {found.n} masks (such as {found.unmatched[0]}) match no picture"
    if tested and len(found.unmatched) == found.n:
        why += ": name each as its picture, or give masks="
    return [why] * len(found.unmatched)


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
