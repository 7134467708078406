"""The options of the verbs that look at a model, take it elsewhere, or move an alias back."""

from dfm_mlflow.config.base import FOLDERS, GOOD, MODEL, StrictOptions, option
from dfm_mlflow.errors import ConfigError


class DescribeOptions(StrictOptions):
    """Every option of a description."""

    model: str = option(
        ...,
        "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/... or a folder.",
        "a model URI",
        min_length=1,
    )


class RollbackOptions(StrictOptions):
    """Every option of a rollback."""

    model: str = option(
        ...,
        "Registered model, such as dfm-bottle, or models:/dfm-bottle.",
        "a registered model's name",
        r"^(models:/)?[^/:@]+$",
    )
    alias: str = option(
        "production",
        "Alias to move back.",
        "an alias of letters, digits, _ and -",
        r"^[\w-]{1,200}$",
    )
    reason: str = option("none", "Why, for the record.", "none or a text", r"\S")

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self.model.removeprefix("models:/")


class ExportOptions(StrictOptions):
    """Every option of an export to ONNX."""

    model: str = option(..., MODEL, "a model URI", min_length=1)
    output: str = option(
        ..., "File to write.", "the name of a local file that ends in .onnx", r"^.+\.onnx$"
    )
    images: str = option(
        "none",
        "Good pictures that the model was never fitted to, to calibrate one of bf16 or fp16 for "
        "the fp32 of ONNX.",
        "none, a folder, an s3:// prefix or a .csv",
        min_length=1,
    )
    good: str = option("auto", GOOD, FOLDERS, min_length=1)
    bad: str = option("auto", "Folders of pictures to leave out.", FOLDERS, min_length=1)


class BundleOptions(StrictOptions):
    """Every option of a bundle for machines without internet."""

    model: str = option(..., MODEL, "a model URI", min_length=1)
    output: str = option(
        ..., "Local folder to write, new or empty.", "the name of a local folder", min_length=1
    )
    extras: str = option(
        "none",
        "Further packages to collect, such as onnxruntime, separated by commas.",
        "none, or names of packages separated by commas",
        r"^[\w.\[\]<>=!~,-]+$",
    )

    def check(self) -> None:
        """Refuse a store for a folder.

        Raises
        ------
        ConfigError
        """
        if "://" in self.output:
            raise ConfigError(f"output={self.output} is not a local folder: give one.")
