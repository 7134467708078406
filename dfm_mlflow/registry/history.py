"""Whether a line gets better: the versions of a registered model, one after another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion

from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.tracking.lineage import PARENT, RECALIBRATED_FROM, UPDATE


@dataclass(frozen=True)
class VersionRecord:
    """What is known of one version; None where nothing is."""

    version: str
    created: str  # in UTC, ISO 8601
    aliases: list[str]
    parent: str | None  # version, or model, that it was updated or recalibrated from
    n_train: int | None  # pictures that it was fitted to
    threshold: float | None  # largest of its classes
    recall: float | None
    false_alarms: float | None
    image_auroc: float | None
    n_test: int | None  # how many these are
    recall_before: float | None
    false_alarms_before: float | None
    good: int | None
    bad: int | None
    unsure: int | None
    added: int | None
    removed: int | None
    who: str | None  # who gave the verdicts


def history(name: str) -> list[VersionRecord]:
    """Gather what is known of every version of a registered model."""
    name = name.removeprefix("models:/").partition("/")[0].partition("@")[0]
    client = MlflowClient()
    try:
        aliases = client.get_registered_model(name).aliases
        versions = list(client.search_model_versions(f"name='{name}'"))
    except MlflowException as error:
        raise ArtifactError(
            f"The registered model {name} cannot be read ({error.error_code}): give the name of "
            "one, such as dfm-bottle, and check MLFLOW_TRACKING_URI."
        ) from None
    if not versions:
        raise ArtifactError(f"The registered model {name} has no versions: train one.")
    found = []
    for version in sorted(versions, key=lambda v: int(v.version)):
        number = str(version.version)
        mine = sorted(alias for alias, v in aliases.items() if str(v) == number)
        created = datetime.fromtimestamp(version.creation_timestamp / 1000, timezone.utc)
        found.append(
            record_of(
                number,
                created.isoformat(timespec="seconds"),
                mine,
                _metrics(client, version),
                version.tags,
            )
        )
    return found


def record_of(
    version: str,
    created: str,
    aliases: Sequence[str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> VersionRecord:
    """Write what metrics and tags say of a version."""

    def count(key: str) -> int | None:
        text = tags.get(UPDATE + key, "")
        return int(text) if text.isdecimal() else None

    def tagged(metric: str) -> float | None:
        try:
            return float(tags[f"dfm.{metric}"])
        except (KeyError, ValueError):
            return None

    n_train = metrics.get("n_train", tagged("n_train"))
    n_test = metrics.get("n_test")
    return VersionRecord(
        version=version,
        created=created,
        aliases=list(aliases),
        parent=tags.get(PARENT) or tags.get(RECALIBRATED_FROM),
        n_train=None if n_train is None else int(n_train),
        threshold=metrics.get("threshold"),
        recall=metrics.get("recall", tagged("recall")),
        false_alarms=metrics.get("false_positive_rate"),
        image_auroc=metrics.get("image_auroc", tagged("image_auroc")),
        n_test=None if n_test is None else int(n_test),
        recall_before=metrics.get("recall_before"),
        false_alarms_before=metrics.get("false_positive_rate_before"),
        good=count("good"),
        bad=count("bad"),
        unsure=count("unsure"),
        added=count("added"),
        removed=count("removed"),
        who=tags.get(UPDATE + "by"),
    )


def _metrics(client: MlflowClient, version: ModelVersion) -> dict[str, float]:
    try:
        return dict(client.get_run(version.run_id).data.metrics) if version.run_id else {}
    except MlflowException:  # deleted, or of another server
        return {}


def better(records: Sequence[VersionRecord]) -> str:
    """Say whether the last update made the line better, on the same pictures before and after."""
    now = records[-1]
    parts = []
    for what, was, value in (
        ("recall", now.recall_before, now.recall),
        ("false alarms", now.false_alarms_before, now.false_alarms),
    ):
        if was is not None and value is not None:
            parts.append(
                f"{what} {value:.3f} as before"
                if value == was
                else f"{what} {value:.3f} (before, {was:.3f})"
            )
    which = f"version {now.version}" if now.version.isdecimal() else f"the {now.version} version"
    if not parts:
        return (
            "Each version is measured on the test pictures of its own run, which may differ from "
            "one to the next."
        )
    return (
        f"On the test pictures of {which}: {' and '.join(parts)}. Other rows are each measured on "
        "the test pictures of their own run."
    )


_COLUMNS = {
    "version": "version",
    "aliases": "aliases",
    "from": "parent",
    "trained on": "n_train",
    "good": "good",
    "bad": "bad",
    "unsure": "unsure",
    "removed": "removed",
    "threshold": "threshold",
    "recall": "recall",
    "(its parent)": "recall_before",
    "false alarms": "false_alarms",
    "(parent's)": "false_alarms_before",
    "AUROC": "image_auroc",
    "by": "who",
}


def in_lines(records: Sequence[VersionRecord]) -> str:
    """Write a history as a table, and say whether the line gets better."""
    rows = [list(_COLUMNS)] + [[_cell(getattr(r, c)) for c in _COLUMNS.values()] for r in records]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*(line.rstrip() for line in lines), better(records)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(value) or "-" if isinstance(value, list) else str(value)


def as_dicts(records: Sequence[VersionRecord]) -> list[dict[str, Any]]:
    """Write `records` for scripts."""
    return [asdict(record) for record in records]
