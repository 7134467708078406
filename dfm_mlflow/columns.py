"""The columns of an answer, with their pandas dtypes: one row a picture, whoever is asked."""

COLUMNS = {
    "anomaly_score": "float64",
    "p_value": "float64",
    "is_anomaly": "bool",
    "predicted_class": "object",
    "fre": "float64",
    "nll": "float64",
    "anomaly_map": "object",
    "error": "object",
}
# Only in models with a retest band: reject, retest or pass.
DECISION = {"decision": "object"}
