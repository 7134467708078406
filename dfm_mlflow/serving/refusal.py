"""What a client is told of a request that cannot be served, and under which name it is counted."""

import json

import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
)

from dfm_mlflow.errors import ConfigError, ImageError
from dfm_mlflow.serving.batcher import OverloadedError
from dfm_mlflow.serving.limits import LateError


class RequestError(MlflowException):
    """Answer to a request that cannot be served: one sentence, never the request's own data.

    MLflow's server puts the data before the message of an exception; what it sends is built here.
    """

    def __init__(self, sentence: str, error_code: int):
        super().__init__(sentence, error_code=error_code)
        self.sentence = sentence

    def serialize_as_json(self) -> str:
        """Give the body of the HTTP answer."""
        return json.dumps({"error_code": self.error_code, "message": self.sentence})


def refusal_of(error: Exception) -> RequestError:
    """Say to a client what happened, in one sentence."""
    if isinstance(error, ImageError | ConfigError):
        return RequestError(str(error), INVALID_PARAMETER_VALUE)
    if isinstance(error, OverloadedError):
        return RequestError(
            "The server has as many requests as it takes: send this one again in a moment.",
            TEMPORARILY_UNAVAILABLE,
        )
    if isinstance(error, LateError):
        return RequestError(
            "The time of the request is over: send fewer pictures at once.", DEADLINE_EXCEEDED
        )
    if _is_lack_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return RequestError(
            "Memory ran out: send fewer or smaller pictures, or lower batch_size.",
            TEMPORARILY_UNAVAILABLE,
        )
    return RequestError(
        f"The server failed at this request ({type(error).__name__}): its log says more.",
        INTERNAL_ERROR,
    )


def kind_of(error: Exception) -> str:
    """Name of an `error` among those that are counted."""
    if isinstance(error, ImageError):
        return "picture"
    if isinstance(error, ConfigError):
        return "request"
    if isinstance(error, OverloadedError):
        return "overloaded"
    if isinstance(error, LateError):
        return "late"
    return "memory" if _is_lack_of_memory(error) else "internal"


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator on a CPU, cuDNN and cuBLAS say it in words only
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
