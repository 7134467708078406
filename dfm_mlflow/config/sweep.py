"""The options of a sweep: those of a training run, the categories and the grid."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from dfm_mlflow.config.base import CATEGORIES, StrictOptions, option
from dfm_mlflow.config.train import Options
from dfm_mlflow.errors import ConfigError


class _Sweep(StrictOptions):
    """What :class:`SweepOptions` knows beside its fields."""

    if TYPE_CHECKING:  # fields that it reads
        category: str
        categories: str
        grid: str
        preset: str
        registered_model: str
        engine: str

    @property
    def category_names(self) -> tuple[str, ...]:
        """Categories that get runs of their own."""
        given = self.category if self.categories == "auto" else self.categories
        return tuple(dict.fromkeys(given.split(",")))

    def configurations(self) -> list[dict[str, str]]:
        """Every combination of the grid's values, as options that differ."""
        axes: dict[str, list[str]] = {}
        for part in [] if self.grid == "none" else self.grid.strip(";").split(";"):
            name, _, values = part.strip().partition("=")
            if name not in Options.model_fields or name in _NOT_SWEPT or name in axes:
                known = ", ".join(f for f in Options.model_fields if f not in _NOT_SWEPT)
                raise ConfigError(
                    f"grid has {name!r}, which is not an option to sweep or appears twice: "
                    f"give each of {known} at most once."
                )
            # values that hold commas themselves, such as layers, are separated by |
            axes[name] = [v.strip() for v in values.split("|" if "|" in values else ",")]
        return [dict(zip(axes, v, strict=True)) for v in itertools.product(*axes.values())]

    def options(self, category: str, configuration: Mapping[str, str]) -> Options:
        """Give the options of one child, as for a training run."""
        given = {name: getattr(self, name) for name in Options.model_fields}
        return Options.parse(given | {"category": category} | dict(configuration))

    def check(self) -> None:
        """Refuse what cannot work for any category."""
        if self.registered_model not in ("auto", "none"):
            raise ConfigError(
                f"registered_model={self.registered_model} has no meaning in a sweep, which "
                "registers nothing: leave it out, and train the best configuration."
            )
        refuse_spark(self.engine, "sweep")
        for configuration in self.configurations():
            try:
                self.options(self.category_names[0], configuration).resolve()
            except ConfigError as error:
                named = ", ".join(f"{k}={v}" for k, v in configuration.items()) or "the sweep"
                raise ConfigError(f"With {named}: {error}") from None


_NOT_SWEPT = (
    *("category", "data", "good", "bad", "masks", "exclude"),
    *("test_copies", "registered_model", "engine", "cache"),
)
_FIELDS: dict[str, Any] = {n: (f.annotation, f) for n, f in Options.model_fields.items()}
SweepOptions = create_model(
    "SweepOptions",
    __base__=_Sweep,
    __doc__="Every option of a sweep: those of a training run, the categories and the grid.",
    categories=(
        str,
        option(
            "auto",
            "Categories, each of which gets models of its own; auto is category.",
            "auto, or names separated by commas, without / : % or quotes",
            CATEGORIES,
        ),
    ),
    grid=(
        str,
        option(
            "none",
            "Options with their values, as pca_level=0.9,0.97;score=fre,nll; values that hold "
            "commas themselves are separated by |.",
            "none, or option=value,value;option=value",
            r"^(none|\w+=[^;=]+(;\w+=[^;=]+)*;?)$",
        ),
    ),
    **_FIELDS,
)


def refuse_spark(engine: str, verb: str) -> None:
    """Refuse an `engine` that a `verb` which fits many models on one machine does not know.

    Raises
    ------
    ConfigError
        For ``spark``.
    """
    if engine == "spark":
        raise ConfigError(
            f"engine=spark is not known to {verb}: use engine=local, on some of the pictures, and "
            "train on all of them with what it found."
        )
