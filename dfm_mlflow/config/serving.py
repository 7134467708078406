"""What a served model can be told."""

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dfm_mlflow.errors import ConfigError

PREFIX = "DFM_"  # of the environment variable of each key
_SECRET = ("alarm_webhook",)  # whose value no message repeats


class ServingSettings(BaseModel):
    """Keys of ``model_config``; a null means the default.

    Each has an environment variable, too, ``DFM_`` and its name in capitals, which has the last
    word: MLflow drops keys that a model's own ``model_config`` lacks, so that only a variable
    reaches models that were saved before the key existed.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    # ``cpu``, ``cuda`` or ``cuda:N``; by default ``MLFLOW_DEFAULT_PREDICTION_DEVICE``, then CUDA,
    # then CPU.
    device: str | None = None
    precision: str | None = None  # must be the one that the model was calibrated in
    batch_size: int = Field(16, ge=1)  # pictures in one forward pass at most
    # How long a picture waits at most for those of other requests that are on their way.
    max_wait_ms: float = Field(5.0, ge=0, le=10_000)
    # Requests in the model at the same time; further ones are refused with 503. 0 turns the joining
    # of requests off, and every request runs the network by itself.
    queue_size: int = Field(64, ge=0)
    # Threads of one forward pass on a CPU. By default a server process takes its share of the
    # processors, and any other process keeps torch's own number.
    threads: int | None = Field(None, ge=1)
    max_pictures: int = Field(1000, ge=1)  # pictures in one request to a server
    # Bytes of the pictures of one request to a server, in units of 2**20.
    max_megabytes: int = Field(64, ge=1)
    # Where Prometheus may ask a server for its metrics; none by default.
    metrics_port: int | None = Field(None, ge=1, le=65_535)
    metrics_host: str = Field("127.0.0.1", min_length=1)  # address that this port is bound to
    # Folder or ``s3://`` prefix for a server's log of what it answered; none by default.
    log_to: str | None = Field(None, min_length=1)
    # Size of the log at most, in units of 2**20: the oldest parts go first.
    log_megabytes: int = Field(1024, ge=1)
    # Which pictures are kept beside the log: those that are flagged; those and the ones in the
    # retest band; or all that could be scored.
    keep: Literal["none", "flagged", "retest", "all"] = "none"
    # Size of the kept pictures at most, in units of 2**20: the oldest go first.
    keep_megabytes: int = Field(1024, ge=1)
    # Probability of a false alarm over the whole life of a server, in (0, 1); no alarm by default.
    drift_alarm: float | None = Field(None, gt=0, lt=1)
    # Share of flagged pictures, good and defective, that is expected; the promised rate by default.
    expected_flagged: float | None = Field(None, gt=0, lt=1)
    alarm_webhook: str | None = Field(
        None, pattern=r"^(https://[^/@\s]+|http://(127\.0\.0\.1|localhost)(:\d+)?)(/\S*)?$"
    )
    # ``models:/NAME@ALIAS``, whose version a server loads when the alias moves; or ``none``.
    follow: str = Field("none", pattern=r"^(none|models:/[^/:@]+@[^/:@]+)$")
    follow_seconds: float = Field(30.0, ge=0.1, le=86_400)  # time between two looks at the registry

    @field_validator("log_to")
    @classmethod
    def _names_a_bucket(cls, value: str | None) -> str | None:
        if value and "://" in value and not value.removeprefix("s3://").strip("/"):
            raise ValueError("give a folder or s3://bucket/prefix")
        if value and "://" in value and not value.startswith("s3://"):
            raise ValueError("give a folder or s3://bucket/prefix")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> "ServingSettings":
        if self.keep != "none" and self.log_to is None:
            raise ValueError("keep needs log_to, beside which pictures are kept: give it, too")
        for name in ("expected_flagged", "alarm_webhook"):
            if getattr(self, name) is not None and self.drift_alarm is None:
                raise ValueError(f"{name} needs drift_alarm: give it a rate such as 0.01")
        return self

    @classmethod
    def parse(
        cls, config: dict[str, Any] | None, environment: Mapping[str, str] | None = None
    ) -> "ServingSettings":
        """Read `config`, a ``model_config``; None, also as a value, leaves the default."""
        given = {key: value for key, value in (config or {}).items() if value is not None}
        names = {}
        for key in cls.model_fields:
            if text := (environment or {}).get(PREFIX + key.upper(), "").strip():
                names[key] = PREFIX + key.upper()
                given.pop(key, None)
                if text.lower() != "none":
                    given[key] = text
        try:
            return cls(**given)
        except ValidationError as error:
            raise ConfigError(_sentence(error.errors()[0], names)) from None

    @classmethod
    def served(cls, config: dict[str, Any] | None) -> "ServingSettings":
        """Read `config` and this process's environment; see :meth:`parse`."""
        return cls.parse(config, os.environ)

    @property
    def watches(self) -> bool:
        """Whether anything is asked for that a server does beside answering."""
        return (
            self.metrics_port is not None
            or self.log_to is not None
            or self.drift_alarm is not None
            or self.follow != "none"
        )


def _sentence(error: Any, names: Mapping[str, str]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return f"model_config is refused: {message}."
    key = str(error["loc"][0])
    value = "..." if key in _SECRET else repr(error["input"])
    if key in _SECRET:
        message = "give https://HOST/..., or http:// on this machine alone"
    return f"{names.get(key, f'model_config {key}')}={value} is refused: {message}."
