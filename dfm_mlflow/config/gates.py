"""The options of the gates that a version passes before an alias points to it."""

from dfm_mlflow.config.base import StrictOptions, option
from dfm_mlflow.errors import ConfigError


class GateOptions(StrictOptions):
    """What the gates ask for: options of every verb that promotes."""

    force: bool = option(
        False, "Promote past refusals by metrics, comparisons, speed or size.", "true or false"
    )
    min_auroc: float = option(
        0.8, "Least image AUROC on the version's test pictures.", "a number from 0 to 1", ge=0, le=1
    )
    min_recall: float = option(
        0.5,
        "Least share of labelled defects that the version finds at its threshold.",
        "a number from 0 to 1",
        ge=0,
        le=1,
    )
    max_fpr: float = option(
        0.1,
        "Without test pictures: most false positives that the held-out good pictures promise.",
        "a number in (0, 1]",
        gt=0,
        le=1,
    )
    margin: float = option(
        0.02,
        "AUROC that the version may lose against the one that holds the alias, and the best that "
        "ever held it.",
        "a number from 0 to 1",
        ge=0,
        le=1,
    )
    margin_recall: float = option(
        0.05,
        "Recall at the threshold that it may lose against the same.",
        "a number from 0 to 1",
        ge=0,
        le=1,
    )
    min_images: int = option(
        20,
        "Good, and defective, pictures that a comparison needs.",
        "a whole number of at least 1",
        ge=1,
    )
    max_slowdown: float = option(
        1.5,
        "Time for a picture, as a multiple of the other version's.",
        "a number above 0",
        gt=0,
        allow_inf_nan=False,
    )
    max_growth: float = option(
        1.5,
        "Bytes of the model, as a multiple of the other version's.",
        "a number above 0",
        gt=0,
        allow_inf_nan=False,
    )


def check_reason(force: bool, reason: str, example: str) -> None:
    """Refuse to overrule a gate without saying why."""
    if force and reason.strip().lower() == "none":
        raise ConfigError(
            f"force=true needs a reason for the record: give one, such as reason='{example}'."
        )
