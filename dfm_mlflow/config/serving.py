"""What a served model can be told."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfm_mlflow.errors import ConfigError


class ServingSettings(BaseModel):
    """Keys of ``model_config``; a null means the default.

    Attributes
    ----------
    device : str, optional
        ``cpu``, ``cuda`` or ``cuda:N``; by default ``MLFLOW_DEFAULT_PREDICTION_DEVICE``, then CUDA,
        then CPU.
    precision : str, optional
        Must be the one that the model was calibrated in.
    batch_size : int
        Pictures in one forward pass at most.
    max_wait_ms : float
        How long a picture waits at most for those of other requests that are on their way.
    queue_size : int
        Requests in the model at the same time; further ones are refused with 503. 0 turns the
        joining of requests off, and every request runs the network by itself.
    threads : int, optional
        Threads of one forward pass on a CPU. By default a server process takes its share of the
        processors, and any other process keeps torch's own number.
    max_pictures : int
        Pictures in one request to a server.
    max_megabytes : int
        Bytes of the pictures of one request to a server, in units of 2**20.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    device: str | None = None
    precision: str | None = None
    batch_size: int = Field(16, ge=1)
    max_wait_ms: float = Field(5.0, ge=0, le=10_000)
    queue_size: int = Field(64, ge=0)
    threads: int | None = Field(None, ge=1)
    max_pictures: int = Field(1000, ge=1)
    max_megabytes: int = Field(64, ge=1)

    @classmethod
    def parse(cls, config: dict[str, Any] | None) -> "ServingSettings":
        """Read `config`, a ``model_config``; None, also as a value, leaves the default.

        Raises
        ------
        ConfigError
            For a value that a key cannot have.
        """
        given = {key: value for key, value in (config or {}).items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"model_config {first['loc'][0]}={first['input']!r} is refused: {first['msg']}."
            ) from None
