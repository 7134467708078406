"""What was used of a source, and what was not, in one line."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.data.names import UNREAD, is_any_picture
from dfm_mlflow.storage.walk import HIDDEN, File

_MOST_LABELS = 4  # named in the line


@dataclass(frozen=True)
class Account:
    """What became of the files of a source."""

    used: str = ""  # what was used, in words
    # Files that were not, by the reason in words.
    unused: dict[str, int] = field(default_factory=dict)
    # Pictures, masks and broken links among them, which somebody may have meant to be used.
    n_missed: int = 0

    @property
    def n_unused(self) -> int:
        """Files that were not used, for whatever reason."""
        return sum(self.unused.values())

    def sentence(self) -> str:
        """Say all of it in one line."""
        return f"Used {self.used}; not used: {self.left()}."

    def log(self, logger: logging.Logger) -> None:
        """Say it to a `logger`, as a warning where somebody may have meant more to be used."""
        logger.log(logging.WARNING if self.n_missed else logging.INFO, self.sentence())

    def left(self) -> str:
        """Say what was not used."""
        return ", ".join(f"{n} {why}" for why, n in self.unused.items()) or "nothing"


def total(accounts: Iterable[Account]) -> Account:
    """Put the `accounts` of several categories together; reasons are added up."""
    accounts = list(accounts)
    unused: Counter[str] = Counter()
    for account in accounts:
        unused.update(account.unused)
    used = "; ".join(account.used for account in accounts)
    return Account(used, dict(unused), sum(account.n_missed for account in accounts))


def used_of(name: str, items: Iterable[Item], layout: str) -> str:
    """Say what pictures of a category there are."""
    items = list(items)
    test = [item for item in items if item.split == "test"]
    n_fit = len(items) - len(test)
    parts = [f"{n_fit} to fit on"] if n_fit else []
    if test:
        n_good = sum(item.label == GOOD for item in test)
        labels = Counter(item.label for item in test if item.label != GOOD)
        named = [f"{n} of {label}" for label, n in sorted(labels.items())[:_MOST_LABELS]]
        if len(labels) > _MOST_LABELS:
            named.append(f"and {len(labels) - _MOST_LABELS} more labels")
        n_masks = sum(item.mask is not None for item in test)
        masks = f"; {n_masks} masks" if n_masks else ""
        parts.append(f"{len(test)} to test on ({', '.join([f'{n_good} good', *named])}{masks})")
    return f"{len(items)} pictures of {name} ({layout}): {', '.join(parts)}"


def reason_of(file: File) -> str | None:
    """Say why a `file` is not read by its ending, or None where it is a picture that is read."""
    if file.suffix in UNREAD:
        return f"{file.suffix} ({UNREAD[file.suffix]})"
    if is_any_picture(file):
        return None
    return f"{file.suffix} files" if file.suffix else "files without an ending"


def count(reasons: Iterable[str], left_out: Counter[str]) -> dict[str, int]:
    """Count files by the reason that they are not used, the most frequent first."""
    counted = Counter(reasons)
    for why, n in left_out.items():
        counted["hidden files or folders" if why == HIDDEN else why] += n
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))
