"""A detector from images in memory: what a training does, without catalogue and run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dfm_mlflow.config import Options
from dfm_mlflow.errors import ConfigError, ImageError
from dfm_mlflow.images.picture import listed
from dfm_mlflow.network.builder import build_extractor, load_roi
from dfm_mlflow.network.copies import copies_of

if TYPE_CHECKING:
    from dfm_mlflow.detector.anomaly_detector import AnomalyDetector

# What reads files or chooses among them; their place is a training.
_OF_FILES = ("data", "good", "bad", "masks", "exclude", "group_by", "engine", "registered_model")


def fit_images(
    kind: "type[AnomalyDetector]",
    images: Any,
    labels: Sequence[str] | None,
    options: Mapping[str, Any],
) -> "AnomalyDetector":
    """Fit and calibrate on good pictures."""
    if of_files := [name for name in _OF_FILES if name in options]:
        raise ConfigError(
            f"{of_files[0]} is about files, and pictures were given: leave it out, or use "
            "dfm_mlflow.train."
        )
    images = listed(images)
    category = str(options.get("category", "images"))
    names = [category] * len(images) if labels is None else [str(label) for label in labels]
    if len(names) != len(images):
        raise ConfigError(
            f"{len(names)} labels were given for {len(images)} pictures: give one for each."
        )
    named = {"category": ",".join(dict.fromkeys(names)), "registered_model": "none"}
    given = {"precision": "fp32", "augment": "none", **options, **named}
    if given["augment"] == "auto":
        raise ConfigError(
            "augment=auto is tried in a training: give none, flips, rotations or all."
        )
    resolved = Options.of(**given).resolve()
    extractor, weights, resolved = build_extractor(resolved, (), load_roi(resolved.roi))
    extraction = extractor.extract(images, copies=copies_of(resolved.augment))
    if extraction.errors:
        i, why = min(extraction.errors.items())
        raise ImageError(f"Row {i}: {why}")
    return kind.fit(resolved, extractor, extraction, names, weights)
