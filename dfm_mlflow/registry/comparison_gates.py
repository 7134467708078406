"""Whether a version is worse than those that hold or held an alias, on the same test pictures."""

from collections.abc import Sequence

import pandas as pd

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.core.comparison import (
    NOT_WORSE,
    WORSE,
    Comparison,
    compare_auroc,
    compare_recall,
)
from dfm_mlflow.registry.candidate import Candidate
from dfm_mlflow.registry.gates import Gate

COMPARISON, THRESHOLD = "comparison", "threshold"  # by AUROC, and by recall at the threshold
BEST = "best_"  # before the names of gates and figures against the best version that ever held it


def comparison_gates(
    challenger: Candidate,
    rival: Candidate,
    options: PromoteOptions,
    scored: tuple[pd.DataFrame, pd.DataFrame],
    by: Sequence[str] = (COMPARISON, THRESHOLD),
    best: bool = False,
) -> list[Gate]:
    """Refuse a challenger that ranks, or decides on, the same test pictures worse than a rival."""
    prefix = BEST if best else ""
    defective = scored[0]["defective"].to_numpy(bool)
    n_defective = int(defective.sum())
    n_good = len(defective) - n_defective
    if not scored[0].groupby("category")["defective"].nunique().eq(2).any():
        # a version whose quality was measured is not replaced by one whose quality is unknown
        known = "image_auroc" in rival.metrics
        remedy = "give data=<folder with good and defective test pictures>"
        sentence = (
            f"{n_good} good and {n_defective} defective test pictures are too few to compare on, "
            f"and {rival.name} was {f'tested on both: {remedy}' if known else 'not tested either'}."
        )
        return [Gate(prefix + COMPARISON, not known, sentence)]
    strata = scored[0]["category"].tolist()
    scores, flags = (
        [table[column].to_numpy(kind) for table in scored]
        for column, kind in (("anomaly_score", float), ("is_anomaly", bool))
    )
    whom = f"{rival.name}, the best that ever held {options.alias}," if best else rival.name
    names = (challenger.name, whom, rival.name)
    gates = []
    if COMPARISON in by:
        found = compare_auroc(defective, *scores, strata=strata)
        gates.append(_gate(prefix, COMPARISON, "AUROC", "margin", found, names, options))
    if THRESHOLD in by:
        found = compare_recall(defective, *flags, strata=strata)
        gates.append(_gate(prefix, THRESHOLD, "recall", "margin_recall", found, names, options))
    return gates


def _gate(
    prefix: str,
    name: str,
    what: str,
    option: str,
    found: Comparison,
    names: Sequence[str],
    options: PromoteOptions,
) -> Gate:
    margin, unit = float(getattr(options, option)), what.lower()
    column = "image_auroc" if name == COMPARISON else unit
    figures = {
        f"challenger_{column}": found.challenger,
        f"champion_{column}": found.champion,
        f"{unit}_difference": found.difference,
        f"{unit}_difference_lower": found.lower,
        f"{unit}_difference_upper": found.upper,
        "n_good": found.n_good,
        "n_defective": found.n_defective,
    }
    verdict = found.verdict(margin, options.min_images)
    sentence = _sentence(what, f"{option}={margin:g}", found, verdict, names, options.min_images)
    figures = {f"{prefix}{key}": float(value) for key, value in figures.items()}
    return Gate(prefix + name, verdict == NOT_WORSE, sentence, figures)


def _sentence(
    what: str, margin: str, found: Comparison, verdict: str, names: Sequence[str], least: int
) -> str:
    challenger, whom, rival = names
    pictures = f"{found.n_good} good and {found.n_defective} defective pictures"
    values = (
        f"{what} {found.challenger:.3f} against {found.champion:.3f}, a difference between "
        f"{found.lower:+.3f} and {found.upper:+.3f} (each bound at {found.confidence:.0%})"
    )
    if verdict == NOT_WORSE:
        return f"{challenger.capitalize()} is not worse than {whom} on {pictures}: {values}."
    if verdict == WORSE:
        return (
            f"{challenger.capitalize()} is worse than {whom} on {pictures}: {values}, all of it "
            f"beyond {margin}; keep {rival} or train a better one."
        )
    why = (
        f"at least {least} of each are needed"
        if min(found.n_good, found.n_defective) < least
        else f"{values}, and {margin} lies within"
    )
    return (
        f"Too few pictures to decide whether {challenger} is worse than {whom} in {what}: "
        f"{pictures}; {why}: add test pictures, or accept a larger margin."
    )
