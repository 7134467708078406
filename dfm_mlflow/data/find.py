"""Every picture to score below a folder or prefix, of a pattern or a manifest; nothing is read."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wcmatch import glob

from dfm_mlflow.data.accounting import Account, count, reason_of, total
from dfm_mlflow.data.manifest import read_list
from dfm_mlflow.data.names import EXTENSIONS, UNREAD
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.paths import check_names, local_path
from dfm_mlflow.storage.store import SCHEME, S3Folder, S3Object, find, folder, split_uri
from dfm_mlflow.storage.walk import NOWHERE, File, Walk, walk

GROUND_TRUTH = "ground_truth"
_NAMED = 4  # addresses that the line of what was used names
_WILD = re.compile(r"[*?\[]")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """Pictures to score."""

    sources: list[Path | S3Object]  # in the order of their names, or of the rows of a manifest
    parts: list[str | None]  # which part each shows, where a manifest says so
    account: Account  # what was used, and what was not


def find_all(addresses: Sequence[str]) -> Found:
    """List the pictures of several addresses, each once, in the order of the addresses."""
    if len(addresses) == 1:
        return find_pictures(addresses[0])
    several = [_found(address) for address in addresses]
    pairs: dict[str, tuple[Path | S3Object, str | None]] = {}
    for found in several:
        for source, part in zip(found.sources, found.parts, strict=True):
            pairs.setdefault(str(source), (source, part))
    account = total(found.account for found in several)
    if len(several) > _NAMED:
        used = f"{len(pairs)} pictures of {len(several)} addresses"
        account = Account(used, account.unused, account.n_missed)
    account.log(_logger)
    return Found([s for s, _ in pairs.values()], [part for _, part in pairs.values()], account)


def find_pictures(address: str) -> Found:
    """List pictures; the log says in one line what is used and what is not.

    Hidden files are left out, and so is everything below a folder ``ground_truth`` that the address
    does not spell. Links to folders are followed once.
    """
    found = _found(address)
    found.account.log(_logger)
    return found


def _found(address: str) -> Found:
    if address.lower().endswith(".csv") and not _WILD.search(address):
        rows = read_list(address)
        account = Account(f"{len(rows)} pictures of {address}")
        return Found([source for source, _ in rows], [part for _, part in rows], account)
    if (one := _single(address)) is not None:
        return Found([one], [None], Account(f"the picture {address}"))
    pattern = bool(_WILD.search(address))
    walked = _in_s3(address, pattern) if address.startswith(SCHEME) else _local(address, pattern)
    wanted = [file for file in walked.files if _in_truth(file) is None]
    kept = wanted if pattern else [file for file in wanted if not reason_of(file)]
    sources = [file.source for file in kept]
    if not sources:
        kinds = "" if pattern else f" ({', '.join(sorted(EXTENSIONS))})"
        others = count([why for f in wanted if (why := reason_of(f))], walked.left_out)
        held = "".join(f", but {n} {why}" for why, n in list(others.items())[:1])
        raise DataError(f"There is no picture{kinds} in {address}{held}: correct the address.")
    check_names(map(str, sources))
    reasons = [why for f in walked.files if (why := _in_truth(f) or reason_of(f))]
    n_missed = sum(file.suffix in UNREAD for file in wanted) + walked.left_out[NOWHERE]
    account = Account(f"{len(sources)} pictures of {address}")
    if not pattern:  # what a pattern does not name, nobody meant
        account = Account(account.used, count(reasons, walked.left_out), n_missed)
    ordered = sorted(sources, key=str)
    return Found(ordered, [None] * len(ordered), account)


def _single(address: str) -> Path | S3Object | None:
    """Give the one file or object that an address names, whatever its ending; None for others."""
    if not address.startswith(SCHEME):
        path = local_path(address)
        return path if path.is_file() else None
    named = Path(address).suffix.lower() in EXTENSIONS and not _WILD.search(address)
    return find(address) if named and not S3Folder(address).is_dir() else None


def _in_truth(file: File) -> str | None:
    """Masks look like pictures, and score like defects."""
    inside = any(name.casefold() == GROUND_TRUTH for name in file.folders)
    return f"in {GROUND_TRUTH}" if inside else None


def _local(address: str, pattern: bool) -> Walk:
    path = local_path(address)
    if path.is_dir():
        return _walk(path)
    if not pattern:
        raise DataError(
            f"{os.path.abspath(path)} is not there: give a folder, a pattern or an s3:// prefix."
        )
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if _WILD.search(part))
    root = Path(*parts[:fixed])
    if not root.is_dir():
        raise DataError(
            f"The folder {os.path.abspath(root)} of {address} is not there: correct the pattern."
        )
    return _matching(_walk(root), "/".join(parts[fixed:]))


def _in_s3(address: str, pattern: bool) -> Walk:
    if not pattern:
        return walk(S3Folder(address))
    key = split_uri(address)[1]
    head = key[: _WILD.search(key).start()].rpartition("/")[0]  # type: ignore[union-attr]  # it has one
    root = folder(f"{SCHEME}{split_uri(address)[0]}/{head}")
    return _matching(_walk(root), key.removeprefix(head).lstrip("/"))


def _walk(root: Path | S3Folder) -> Walk:
    try:
        return walk(root)
    except OSError as error:
        raise DataError(
            f"The folder {error.filename or root} cannot be listed ({error.strerror}): check its "
            "permissions."
        ) from None


def _matching(walked: Walk, pattern: str) -> Walk:
    # a shell's patterns, over whole paths; pathlib has them from Python 3.13 on
    wanted = glob.compile(
        pattern, flags=glob.GLOBSTAR | glob.DOTGLOB | glob.CASE | glob.FORCEUNIX
    ).match
    spelled = GROUND_TRUTH in pattern.casefold()
    files = [File(() if spelled else f.folders, f.source) for f in walked.files if wanted(f.place)]
    return Walk(files, Counter())


def parts_by(pattern: str, found: Found) -> list[str] | None:
    """Say which part each picture shows, by a manifest or a regular expression on its path."""
    if pattern == "none" and not any(found.parts):
        return None
    named = [part or _part_of(pattern, str(s)) for s, part in _pairs(found)]
    if pattern != "none" and not any(named):
        raise DataError(
            f"part_by={pattern!r} matches no picture, such as {found.sources[0]}: correct the "
            "expression or give none."
        )
    return [part or str(source) for part, (source, _) in zip(named, _pairs(found), strict=True)]


def _part_of(pattern: str, path: str) -> str | None:
    match = None if pattern == "none" else re.search(pattern, path)
    return match.group(match.re.groups and 1) if match else None


def _pairs(found: Found) -> Sequence[tuple[Path | S3Object, str | None]]:
    return list(zip(found.sources, found.parts, strict=True))
