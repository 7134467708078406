"""What each picture is: its split and its label, and how good pictures are dealt."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.storage.walk import File

OPEN = "open"  # split of good pictures that nobody dealt to fitting or testing
TESTED = 5  # one in so many of these is tested on


@dataclass(frozen=True)
class Role:
    """What a picture is."""

    split: str
    label: str  # ``good`` or the name of a defect


@dataclass(frozen=True)
class Layout:
    """What a recogniser took."""

    said: str  # the layout in a few words, for the line about what is used
    roles: dict[str, Role] = field(default_factory=dict)  # by the picture's place
    unused: dict[str, str] = field(default_factory=dict)  # why a picture is not used, by its place


def deal(layout: Layout, pictures: Sequence[File], *, all_tested: bool) -> Layout:
    """Give every good picture that nobody dealt a split.

    Where there are defects and no good pictures to test on, the last fifth of each folder, by name,
    is tested on: a burst of pictures is split once at most.
    """
    given = list(layout.roles.values())
    undealt: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for file in pictures:
        if layout.roles.get(file.place) == Role(OPEN, GOOD):
            undealt[file.folders].append(file.place)
    if not any(role.split == OPEN for role in given):
        return layout
    bad = any(role.label != GOOD for role in given)
    tested = all_tested or (bad and Role("test", GOOD) not in given)
    roles, n_tested = dict(layout.roles), 0
    for places in undealt.values():
        n = (len(places) if all_tested else len(places) // TESTED) if tested else 0
        n_tested += n
        for i, place in enumerate(places):
            roles[place] = Role("test" if i >= len(places) - n else "train", GOOD)
    said = layout.said
    if n_tested and not all_tested:
        said += ", the last fifth of each good folder to test on"
    return replace(layout, said=said, roles=roles)
