"""How often the gates of `promote` let a worse version through, simulated.

    python benchmarks/gates.py            # 2,000 test sets a row, 5 minutes
    python benchmarks/gates.py --quick    # 200

Two detectors score the same good and defective pictures. A score is normal, and a share of its
variance (``--common``, 0.9) is the picture's own, which both detectors see alike. The champion has
AUROC 0.95, or recall 0.8 at its threshold; the challenger loses 0, 0.02, 0.05 or 0.1 of it. Printed
is how often the gate passes the challenger, with the options' defaults, and how far ten promotions
drift when each challenger is a little worse than the one before.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.comparison import NOT_WORSE, compare_auroc, compare_recall
from dfm_mlflow.core.operating_point import UNLIKELY, Promise, false_alarm_chance

DEFAULTS = PromoteOptions.parse({"model": "m", "version": "1", "to": "production"})
LOSSES, SIZES = (0.0, 0.02, 0.05, 0.1), (20, 40, 100, 300)
AUROC, RECALL = 0.95, 0.8
RESAMPLES = 500


def scores(
    rng: np.random.Generator, n: int, common: float, strengths: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of n good and n defective pictures, and the scores of detectors of some strengths."""
    defective = np.arange(2 * n) >= n
    own = np.sqrt(common) * rng.normal(size=2 * n)
    noise = np.sqrt(1 - common) * rng.normal(size=(len(strengths), 2 * n))
    return defective, own + noise + np.outer(strengths, defective)


def strength_of(auroc: float) -> float:
    return float(np.sqrt(2) * norm.ppf(auroc))


def passes_auroc(rng: np.random.Generator, n: int, common: float, loss: float) -> bool:
    defective, (new, old) = scores(rng, n, common, (strength_of(AUROC - loss), strength_of(AUROC)))
    found = compare_auroc(defective, new, old, n_resamples=RESAMPLES)
    return found.verdict(DEFAULTS.margin, DEFAULTS.min_images) == NOT_WORSE


def passes_recall(rng: np.random.Generator, n: int, common: float, loss: float) -> bool:
    defective, (new, old) = scores(rng, n, common, (norm.ppf(RECALL - loss), norm.ppf(RECALL)))
    found = compare_recall(defective, new > 0, old > 0, n_resamples=RESAMPLES)
    return found.verdict(DEFAULTS.margin_recall, DEFAULTS.min_images) == NOT_WORSE


def passes_false_alarms(rng: np.random.Generator, n: int, held_out: int, rate: float) -> bool:
    """Good pictures of another day: their scores are shifted so that so many would be flagged."""
    fpr = 0.01
    calibration = Calibration.of(rng.normal(size=held_out))
    promise = Promise.of(calibration, fpr)
    shift = norm.ppf(rate) - norm.ppf(max(fpr, calibration.smallest_p_value))
    flagged = (rng.normal(size=n) + shift > calibration.threshold(fpr)).sum()
    return false_alarm_chance(int(flagged), [(n, promise)]) >= UNLIKELY


def drift(rng: np.random.Generator, n: int, common: float, step: float, best_too: bool) -> float:
    """AUROC that is lost after ten challengers, each a step below the version that holds the alias.

    Every challenger is judged on a new test set; a refused one changes nothing.
    """
    held = best = AUROC
    for _ in range(10):
        offered = held - step
        auc = [strength_of(a) for a in (offered, held, best)]
        defective, (new, old, first) = scores(rng, n, common, auc)
        rivals = [old, first] if best_too else [old]
        verdicts = [
            compare_auroc(defective, new, rival, n_resamples=RESAMPLES).verdict(
                DEFAULTS.margin, DEFAULTS.min_images
            )
            for rival in rivals
        ]
        if all(verdict == NOT_WORSE for verdict in verdicts):
            held = offered
    return AUROC - held


def rate(repeats: int, work: Callable[[np.random.Generator], float]) -> float:
    return float(np.mean([work(np.random.default_rng(seed)) for seed in range(repeats)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--common", type=float, default=0.9)
    asked = parser.parse_args()
    repeats, common = 200 if asked.quick else 2000, asked.common
    for title, gate, margin in (
        (f"AUROC {AUROC}", passes_auroc, f"margin={DEFAULTS.margin:g}"),
        (
            f"recall {RECALL} at the threshold",
            passes_recall,
            f"margin_recall={DEFAULTS.margin_recall:g}",
        ),
    ):
        print(f"\nshare of challengers that pass; champion: {title}, {margin}")
        print("good + defective  " + "".join(f"loses {loss:<6g}" for loss in LOSSES))
        for n in SIZES:
            row = [rate(repeats, lambda r, n=n, x=x, g=gate: g(r, n, common, x)) for x in LOSSES]
            print(
                f"{n:4d} + {n:<4d}       " + "".join(f"{value:<12.3f}" for value in row), flush=True
            )
    print("\nshare that passes the false-alarm gate; fpr=0.01, by held-out and good test pictures")
    rates = (0.01, 0.05, 0.1, 0.3)
    print("held out, tested  " + "".join(f"true rate {value:<6g}" for value in rates))
    for held_out, n in ((30, 20), (100, 20), (100, 100), (300, 100)):
        row = [
            rate(repeats, lambda r, h=held_out, n=n, x=x: passes_false_alarms(r, n, h, x))
            for x in rates
        ]
        print(
            f"{held_out:4d}, {n:<4d}        " + "".join(f"{value:<16.3f}" for value in row),
            flush=True,
        )
    print(
        "\nAUROC lost after ten challengers, each .01 worse than what it would replace, on average"
    )
    for n in (20, 100):
        row = [
            rate(repeats // 20, lambda r, n=n, b=both: drift(r, n, common, 0.01, b))
            for both in (False, True)
        ]
        alone, both = row
        print(
            f"{n:4d} + {n:<4d}  by the holder alone {alone:.3f}, by the best ever, too {both:.3f}"
        )


if __name__ == "__main__":
    main()
