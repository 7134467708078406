"""The MLflow flavor ``dfm``, and what MLflow finds by entry points."""

# First: MLflow imports `dataset` while it is imported itself, which must not happen while `dataset`
# is.
import mlflow  # noqa: F401
