"""What an answer looks like, whoever is asked: one row a picture."""

from dfm_mlflow.errors import ConfigError

# With their pandas dtypes. An image that could not be scored is null in each but `error`.
COLUMNS = {
    "anomaly_score": "float64",
    "p_value": "float64",
    "is_anomaly": "boolean",
    "predicted_class": "object",
    "fre": "float64",
    "nll": "float64",
    "anomaly_map": "object",
    "error": "object",
}
# Only in models with a retest band: reject, retest or pass.
DECISION = {"decision": "object"}


def columns_of(retest: bool) -> dict[str, str]:
    """Columns of an answer with their dtypes, of a model with a `retest` band or without."""
    return COLUMNS | (DECISION if retest else {})


def check_on_error(on_error: str) -> None:
    """Refuse an `on_error` that is neither ``raise`` nor ``report``."""
    if on_error not in ("raise", "report"):
        raise ConfigError("on_error is neither raise nor report: give one of them.")
