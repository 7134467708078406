"""The options of the verbs beside train, tune and sweep."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import field_validator, model_validator

from dfm_mlflow.config.base import (
    BAD,
    CATEGORIES,
    CATEGORY,
    FOLDERS,
    GOOD,
    MASKS,
    MODEL,
    NAME,
    NAMED,
    NAMES,
    REASON,
    StrictOptions,
    option,
)
from dfm_mlflow.config.gates import GateOptions, check_reason
from dfm_mlflow.errors import ConfigError


class EvaluateOptions(StrictOptions):
    """Every option of an evaluation."""

    model: str = option(..., MODEL, "a model URI", min_length=1)
    data: str = option(
        "auto",
        "Pictures as for train, a flat folder of unlabelled ones, or a server's log (log_to); auto "
        "is the model's own data.",
        "auto, mvtec_ad, elpv, a folder, an s3:// prefix or a .csv",
        min_length=1,
    )
    category: str = option(
        "auto",
        "Category of the pictures; auto is that of the model.",
        "auto, or names separated by commas, without / : % or quotes",
        CATEGORIES,
    )
    good: str = option("auto", GOOD, FOLDERS, min_length=1)
    bad: str = option("auto", BAD, FOLDERS, min_length=1)
    masks: str = option("auto", MASKS, FOLDERS, min_length=1)


class ScoreOptions(StrictOptions):
    """Every option of scoring without a server."""

    model: str = option(..., MODEL, "a model URI", min_length=1)
    images: tuple[str, ...] = option(
        ...,
        "Pictures: files, folders or s3:// prefixes with all folders below them, patterns such as "
        "'s3://bucket/2025/**/*.jpg', or manifests .csv (path,part).",
        "files, folders, s3:// prefixes, patterns or a .csv",
        min_length=1,
    )
    output: str = option(
        "none",
        "Table, local or s3://: .parquet or .csv, or with a slash at the end (and with "
        "engine=spark) a folder of parquet parts, which continues an interrupted run.",
        "none, or a name that ends in .parquet, .csv or /",
        r"^(none|.*(\.parquet|\.csv|[^/:]/))$",
    )
    fpr: str = option(
        "auto",
        "Target false-positive rate of the decision; auto is the model's.",
        "auto, or a number in (0, 1)",
        r"^(auto|0?\.\d*[1-9]\d*|[1-9]\d*e-\d+)$",
    )
    anomaly_map: bool = option(
        False, "Add each picture's anomaly map to the table, as base64 PNG.", "true or false"
    )
    on_error: str = option(
        "report",
        "A picture that cannot be read: say so in its row, or stop.",
        "report or raise",
        "^(report|raise)$",
    )
    category: str = option(
        "auto",
        "Category that all pictures are known to be of; auto judges each by the one it fits best.",
        "auto, or one category of the model",
        rf"^{CATEGORY}$",
    )
    overlays: str = option(
        "none",
        "Local folder for pictures with their anomaly maps drawn over them.",
        "none or a folder",
        min_length=1,
    )
    engine: str = option(
        "local", "This machine, or Spark's executors.", "local or spark", "^(local|spark)$"
    )
    part_by: str = option(
        "none",
        "Regular expression on the path; pictures with the same match show one part and get one "
        "decision for it.",
        "none or a regular expression",
        min_length=1,
    )

    @field_validator("images", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def rate(self) -> float | None:
        """False-positive rate of the decision, or None for the model's own."""
        return None if self.fpr == "auto" else float(self.fpr)

    def check(self) -> None:
        """Refuse what is not a regular expression, and what does not go with Spark.

        Raises
        ------
        ConfigError
            One sentence.
        """
        if self.engine == "spark" and (self.output == "none" or self.output.endswith(".csv")):
            raise ConfigError(
                f"output={self.output} is not a folder, and engine=spark writes one of parquet "
                "parts: give a name that ends in / or .parquet."
            )
        try:
            re.compile(self.part_by)
        except re.error as error:
            raise ConfigError(
                f"part_by={self.part_by!r} is not a regular expression ({error}): correct it or "
                "give none."
            ) from None
        if self.overlays != "none" and self.engine == "spark":
            raise ConfigError(
                f"overlays={self.overlays} is a folder of this machine, and engine=spark scores "
                "on others: use engine=local, on the pictures that you want to see."
            )


class CompareOptions(StrictOptions):
    """Every option of a comparison of runs."""

    runs: tuple[str, ...] = option(
        ...,
        "Run ids, run names or model URIs; the others are compared with the first.",
        "at least two runs, several in one text separated by commas",
        min_length=2,
    )
    confidence: float = option(
        0.95,
        "Probability that all intervals hold at once.",
        "a number from 0.5 to below 1",
        ge=0.5,
        lt=1,
    )
    min_images: int = option(
        5,
        "Good, and defective, pictures that a comparison needs.",
        "a whole number of at least 1",
        ge=1,
    )
    output: str = option(
        "none",
        "Write the table here, too, .csv or .md.",
        "none or a name with .csv or .md",
        r"^(none|.+\.(csv|md))$",
    )

    @field_validator("runs", mode="before")
    @classmethod
    def _by_commas(cls, value: Any) -> Any:
        given = (value,) if isinstance(value, str) else value
        return tuple(run for text in given for run in str(text).split(",") if run)


class _Promoted(StrictOptions):
    """What is promoted, and to what."""

    model: str = option(
        ...,
        "The version to promote, such as models:/dfm-bottle/3; or a registered model's name, with "
        "its version beside it.",
        "models:/NAME/VERSION, models:/NAME@ALIAS or a registered model's name",
        r"^([^/:@]+|models:/[^/:@]+(/[1-9]\d{0,9}|@[\w-]+))$",
    )
    version: str = option(
        "auto",
        "Version to promote; auto is that of the model's address.",
        "auto, or the number of a version",
        r"^(auto|[1-9]\d{0,9})$",
    )
    alias: str = option(
        "none",
        "Alias to set, such as staging or production; these two set the stage of that name too.",
        "an alias of letters, digits, _ and -, other than latest and v1, v2, ...",
        r"^[\w-]{1,200}$",
    )
    data: str = option(
        "auto",
        "Labelled pictures to compare on, as for train; auto is the version's own data.",
        "auto, mvtec_ad, elpv, a folder, an s3:// prefix or a .csv",
        min_length=1,
    )
    good: str = option("auto", GOOD, FOLDERS, min_length=1)
    bad: str = option("auto", BAD, FOLDERS, min_length=1)
    masks: str = option("auto", MASKS, FOLDERS, min_length=1)
    reason: str = option("none", REASON, "none or a text", r"\S")
    dry_run: bool = option(False, "Run every gate and move nothing.", "true or false")

    @model_validator(mode="before")
    @classmethod
    def _old_spelling(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "to" in values:  # until version 0.3
            values = dict(values)
            values["alias"] = values.pop("to")
        return values

    @field_validator("alias")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if re.fullmatch(r"(?i)latest|v\d+", value):
            raise ValueError("reserved by MLflow")
        return value


class PromoteOptions(GateOptions, _Promoted):
    """Every option of a promotion."""

    def check(self) -> None:
        """Refuse what does not go together.

        Raises
        ------
        ConfigError
            Without an alias or a version, and for force without a reason.
        """
        if self.alias == "none":
            raise ConfigError(
                "alias=none sets no alias: name the one to set, such as alias=production."
            )
        if not self.model.startswith("models:/") and self.version == "auto":
            raise ConfigError(
                f"model={self.model} names no version: give models:/{self.model}/VERSION, or "
                "version beside it."
            )
        check_reason(self.force, self.reason, "the new camera has no test pictures yet")


class RecalibrateOptions(StrictOptions):
    """Every option of a recalibration."""

    model: str = option(..., MODEL, "a model URI", min_length=1)
    images: str = option(
        ...,
        "New good pictures that the model was never fitted to: a flat folder, or as for train.",
        "a folder, an s3:// prefix or a .csv",
        min_length=1,
    )
    category: str = option(
        "auto",
        "Category that the pictures belong to; auto is the only one.",
        "auto, or one name without / : , % or quotes",
        rf"^{CATEGORY}$",
    )
    good: str = option("auto", GOOD, FOLDERS, min_length=1)
    bad: str = option("auto", BAD, FOLDERS, min_length=1)
    registered_model: str = option("auto", NAMED, NAMES, NAME)
    reason: str = option("none", REASON, "none or a text", r"\S")
    force: bool = option(
        False,
        "Accept pictures that score as if the model was fitted to them, as after a darker lamp.",
        "true or false",
    )

    def check(self) -> None:
        """Refuse what does not go together.

        Raises
        ------
        ConfigError
            For force without a reason.
        """
        check_reason(self.force, self.reason, "the lamp is darker since Monday")


class UpgradeOptions(StrictOptions):
    """Every option of an upgrade."""

    model: str = option(
        ...,
        "Any MLflow model URI of a dfm model of format 1, such as models:/dfm-bottle@production.",
        "a model URI",
        min_length=1,
    )
    data: str = option(
        "auto",
        "Where the pictures that it was fitted to are now; auto is where they were.",
        "auto, mvtec_ad, elpv, a folder, an s3:// prefix or a .csv",
        min_length=1,
    )
    registered_model: str = option("auto", NAMED, NAMES, NAME)
