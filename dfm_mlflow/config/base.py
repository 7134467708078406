"""What the options of every verb share: strictness, and errors in one sentence."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfm_mlflow.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

CATEGORY = r"[^/\\,:.%\"'\s][^/\\,:%\"']*"
CATEGORIES = rf"^{CATEGORY}(,{CATEGORY})*$"

# What folders hold that no name says: of three options that several verbs have.
GOOD = (
    "Folders of good pictures below the category's own, or anywhere: paths or names separated by "
    "commas; or labels of a manifest. auto goes by the names of folders."
)
BAD = "Folders of defective pictures, to test on, in the same way."
MASKS = "Folders of masks; auto is ground_truth or masks."
FOLDERS = "auto, or folders separated by commas"
MODEL = "Any MLflow model URI of a dfm model, such as models:/dfm-bottle@production."
# The name under which a verb registers what it made of another model.
NAME = r"^[^/:.%\"']+$"
NAMES = "auto, none or a name without / : . % or quotes"
NAMED = "Registered model name; auto is that of the model, none does not register."
REASON = "Why, for the record; force needs one."


def option(default: Any, help: str, expected: str, pattern: str | None = None, **kw: Any) -> Any:
    """Declare one option: default, help text, and what an error says was expected."""
    extra: dict[str, Any] = {"expected": expected}
    return Field(default, description=help, pattern=pattern, json_schema_extra=extra, **kw)


class StrictOptions(BaseModel):
    """Options of one verb: scalars in the notation of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Self":
        """Build options from `values` of the command line or of JSON, by name.

        Raises
        ------
        ConfigError
            One sentence that names the option, the value and what was expected, or what does not go
            together.
        """
        try:
            options = cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(_sentence(cls, error)) from None
        options.check()
        return options

    @classmethod
    def of(cls, **values: Any) -> "Self":
        """Build options from values of Python, by name.

        Parameters
        ----------
        **values
            Where an option is a text, also a number, a path, None for ``none``, or a list for what
            commas separate.

        Raises
        ------
        ConfigError
            As :meth:`parse`.
        """
        fields = cls.model_fields
        texts = {name for name in values if name in fields and fields[name].annotation is str}
        return cls.parse({k: _text(v) if k in texts else v for k, v in values.items()})

    def check(self) -> None:
        """Refuse values that do not go together; :meth:`parse` calls it.

        Raises
        ------
        ConfigError
            One sentence.
        """


def _text(value: Any) -> Any:
    """Write a value of Python as on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(str(_text(one)) for one in value)
    return str(value) if isinstance(value, int | float | PurePath) else value


def _sentence(model: type[StrictOptions], error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "options"
    if first["type"] == "extra_forbidden":
        return f"There is no option {name!r}: the options are {', '.join(model.model_fields)}."
    field = model.model_fields[name]
    expected = (field.json_schema_extra or {})["expected"]  # type: ignore[index]  # a dict: see option
    return f"{name}={first['input']!r} is not valid: give {expected}."
