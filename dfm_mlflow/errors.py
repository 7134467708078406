"""Every error of the package, under one root.

A message is one sentence that names the thing, the limit and the remedy.
"""


class DfmError(Exception):
    """Root of every error that dfm-mlflow raises on purpose."""


class ConfigError(DfmError, ValueError):
    """An option has a value that it cannot have, or that does not go with another one."""


class DataError(DfmError, ValueError):
    """A data source is missing, empty or not laid out as expected."""


class ImageError(DfmError, ValueError):
    """The bytes are not an image that the package reads."""


class BackboneError(DfmError, ValueError):
    """A backbone or one of its layers does not exist."""


class WeightsError(DfmError, ValueError):
    """Weights cannot be fetched, read, or lack a tensor of a used layer."""


class DeviceError(DfmError, RuntimeError):
    """The requested device or precision is not there."""


class FitError(DfmError, ValueError):
    """Features that no model can be fitted to."""


class ArtifactError(DfmError, ValueError):
    """A model folder is incomplete, damaged or of another format."""


class ExportError(DfmError, RuntimeError):
    """A detector that cannot be written as ONNX, or a file that would score otherwise."""


class PromotionError(DfmError, RuntimeError):
    """A version that a gate refuses, or an alias that cannot be moved."""


class TrackingError(DfmError, RuntimeError):
    """The tracking server or its artifact store fails, or refuses."""


class SweepError(DfmError, RuntimeError):
    """Categories of a sweep that failed, while the others went on."""


class SparkError(DfmError, RuntimeError):
    """Spark cannot be used, or a job on it failed."""


class ServerError(DfmError, RuntimeError):
    """A scoring server refused a request, or cannot be reached.

    Parameters
    ----------
    sentence : str
        The message.
    status : int, optional
        HTTP status.

    Attributes
    ----------
    status : int or None
        HTTP status; None where there was no answer.
    """

    def __init__(self, sentence: str, status: int | None = None):
        super().__init__(sentence)
        self.status = status
