"""The options of the verbs by which a line learns: review and update."""

from typing import Any

from dfm_mlflow.config.base import MODEL, NAME, NAMED, NAMES, REASON, StrictOptions, option
from dfm_mlflow.config.gates import GateOptions, check_reason
from dfm_mlflow.errors import ConfigError


class ReviewOptions(StrictOptions):
    """Every option of a review."""

    scores: str = option(
        ...,
        "Scored pictures: what score or evaluate wrote (a .parquet, a folder of parts, or "
        "runs:/ID/scores.parquet), train_scores.parquet of a run, or a server's log folder with "
        "kept pictures.",
        "a .parquet, a folder, an s3:// prefix or runs:/ID/FILE.parquet",
        min_length=1,
    )
    model: str = option(
        "auto",
        "Model that draws the maps; auto is the one that the scores name.",
        "auto or a model URI",
        min_length=1,
    )
    output: str = option(
        "review.html",
        "The page, which needs nothing else; with serve none is written.",
        "a name that ends in .html",
        r"^.+\.html$",
    )
    serve: bool = option(
        False,
        "Show the page on 127.0.0.1 until Ctrl-C and append each verdict to verdicts at once.",
        "true or false",
    )
    port: str = option(
        "auto", "Port of serve; auto is a free one.", "auto or 1 to 65535", r"^(auto|[1-9]\d{0,4})$"
    )
    verdicts: str = option(
        "verdicts.csv",
        "Verdicts that are known already, and where serve appends new ones.",
        "a local name that ends in .csv",
        r"^[^:]+\.csv$",
    )
    training: bool = option(
        True,
        "Also show the most unusual training pictures of the model's run.",
        "true or false",
    )
    most: int = option(
        200, "Most pictures on the page.", "a whole number from 1 to 1000", ge=1, le=1000
    )
    who: str = option(
        "auto", "Who judges, for the record; auto is the user here.", "auto or a name", r"\S"
    )


class _Updated(StrictOptions):
    """What is updated, and by what."""

    model: str = option(..., MODEL, "a model URI", min_length=1)
    verdicts: str = option(
        "none",
        "CSV of sha256,verdict (good, bad, unsure) and, where wanted, path, defect, category, who, "
        "when, model, as review writes it.",
        "none or a .csv",
        r"^(none|.+\.csv)$",
    )
    add: str = option(
        "none",
        "Where pictures are that verdicts name and that have moved, found by their contents; "
        "nothing else in it is used.",
        "none, a folder, an s3:// prefix or a pattern",
        min_length=1,
    )
    remove: str = option(
        "none",
        "Text file, or .csv with a column path or sha256, of pictures that leave the training and "
        "the test set.",
        "none or a file",
        min_length=1,
    )
    data: str = option(
        "auto",
        "Pictures to start from; auto is training.csv of the version's run.",
        "auto, a .csv, a folder or an s3:// prefix",
        min_length=1,
    )
    copy_to: str = option(
        "none",
        "Keep every picture of the new set here by its contents, so that none is lost.",
        "none, a folder or an s3:// prefix",
        min_length=1,
    )
    promote: str = option(
        "none",
        "Alias that the new version gets if it passes every gate.",
        "none or an alias of letters, digits, _ and -",
        r"^[\w-]{1,200}$",
    )
    registered_model: str = option("auto", NAMED, NAMES, NAME)
    reason: str = option("none", REASON, "none or a text", r"\S")


class UpdateOptions(GateOptions, _Updated):
    """Every option of an update; the gates are those of its promotion."""

    @property
    def gates(self) -> dict[str, Any]:
        """What the gates ask for, by option."""
        return {name: getattr(self, name) for name in GateOptions.model_fields}

    def check(self) -> None:
        """Refuse the promotion of what is not registered, and gates where none is asked for.

        Raises
        ------
        ConfigError
            One sentence.
        """
        if self.promote != "none" and self.registered_model == "none":
            raise ConfigError(
                f"promote={self.promote} needs a registered version, and registered_model=none "
                "registers none: leave one of them out."
            )
        asked = [k for k, v in self.gates.items() if v != GateOptions.model_fields[k].default]
        if asked and self.promote == "none":
            raise ConfigError(
                f"{asked[0]}={getattr(self, asked[0])} is for a promotion, and promote=none asks "
                "for none: give promote=<alias>, too."
            )
        check_reason(self.force, self.reason, "the new camera has no test pictures yet")
