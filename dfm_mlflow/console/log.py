"""One log on standard error: each fact once, in words; the result is on standard output."""

import logging
import os
import warnings

import click

QUIET, NORMAL, VERBOSE = "quiet", "normal", "verbose"
# What libraries say of their own affairs.
_NOISY = ("alembic", "botocore", "matplotlib", "PIL", "py4j", "onnx_ir", "onnxscript", "torch.onnx")
# What the package says of a model that it tries out before it logs it.
_ASIDE = "dfm_mlflow.serving"
_OURS = "dfm_mlflow"
_level = NORMAL


class _Console(logging.Handler):
    """Messages on standard error, wherever that is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record).strip()
            if text:
                click.echo(text, err=True)
        except Exception:
            self.handleError(record)


class _Words(logging.Formatter):
    """The message alone; a warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        word = {logging.WARNING: "Warning", logging.ERROR: "Error"}.get(record.levelno)
        return f"{word}: {text}" if word and text.strip() else text


def start(level: str = NORMAL) -> None:
    """Write the log of this process to standard error."""
    global _level
    _level = level
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Console)]:
        root.removeHandler(handler)
    handler = _Console()
    verbose = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    plain = _Words("%(message)s")
    handler.setFormatter(logging.Formatter(verbose) if level == VERBOSE else plain)
    handler.addFilter(_wanted)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Palette images with Transparency")
    if level != VERBOSE:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if level == QUIET:
        os.environ.setdefault("TQDM_DISABLE", "1")


def is_quiet() -> bool:
    """Whether only warnings, errors and the result are wanted."""
    return _level == QUIET


def _wanted(record: logging.LogRecord) -> bool:
    if _level == VERBOSE:
        return True
    if getattr(record, "dfm_result", False):  # the result says it
        return False
    if record.levelno >= logging.WARNING:
        return True
    ours = record.name.startswith(_OURS) and not record.name.startswith(_ASIDE)
    return _level == NORMAL and ours
