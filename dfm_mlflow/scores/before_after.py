"""Two models on the same test pictures: what each flags, and how they rank."""

import pandas as pd

from dfm_mlflow.core.comparison import compare_auroc
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector


def compare_models(
    subject: str,
    old: AnomalyDetector,
    new: AnomalyDetector,
    before: pd.DataFrame,
    now: pd.DataFrame,
) -> tuple[str, dict[str, float]]:
    """Say how two models decide and rank, with figures for scripts."""
    if not before.empty:
        read = before["error"].isna() & now["error"].isna()
        before, now = before[read], now[read]
    was = old.thresholds()
    thresholds = ", ".join(
        f"{name} {value:.4g}" + (f" (was {was[name]:.4g})" if name in was else "")
        for name, value in new.thresholds().items()
    )
    figures = {"promised_fpr": new.promised_fpr(), "promised_fpr_before": old.promised_fpr()}
    if before.empty:
        return (
            f"Without test pictures thresholds alone can be compared: {thresholds}; good pictures "
            f"are promised to be flagged at most {new.promised_fpr():.3g} of the time, where it "
            f"was {old.promised_fpr():.3g}.",
            figures,
        )
    parts = []
    bad = now["defective"].to_numpy(bool)
    for kind, mine in (("defective", bad), ("good", ~bad)):
        if mine.any():
            flags = [int(t["is_anomaly"].to_numpy(bool)[mine].sum()) for t in (now, before)]
            parts.append(f"flags {flags[0]} of {mine.sum()} {kind} pictures (before, {flags[1]})")
            figures |= {f"n_flagged_{kind}": flags[0], f"n_flagged_{kind}_before": flags[1]}
    ranked = ""
    if now.groupby("category")["defective"].nunique().eq(2).any():
        scores = [t["anomaly_score"].to_numpy(float) for t in (now, before)]
        found = compare_auroc(bad, *scores, strata=now["category"].tolist())
        ranked = (
            f"; AUROC {found.challenger:.3f} against {found.champion:.3f}, a difference between "
            f"{found.lower:+.3f} and {found.upper:+.3f}"
        )
        figures |= {"auroc_difference": found.difference}
    return (
        f"{subject} {' and '.join(parts)}{ranked}; thresholds: {thresholds}.",
        {name: float(value) for name, value in figures.items()},
    )
