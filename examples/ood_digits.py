"""Out-of-distribution detection on labelled data: digits 0 to 5 are known, 6 to 9 are not.

    python examples/ood_digits.py

Half of the images of the known digits are fitted, once with their labels as classes and once as a
single class; all others are scored. Prints image AUROC of unknown against known digits.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from dfm_mlflow import DFM


def main() -> None:
    """Print a Markdown table."""
    x, digit = load_digits(return_X_y=True)
    known = digit <= 5
    train = known & (np.arange(len(x)) % 2 == 0)
    unknown = ~known[~train]
    print("| score | one class for each digit | a single class |")
    print("|---|---|---|")
    for name, parameters in (
        ("NLL, full space (default)", {}),
        ("NLL, subspace (as published)", {"likelihood": "subspace"}),
        ("FRE", {"score_type": "fre"}),
    ):
        areas = []
        for labels in (digit[train], None):
            dfm = DFM(0.9, **parameters).fit(x[train], labels)
            areas.append(roc_auc_score(unknown, -dfm.score_samples(x[~train])))
        print(f"| {name} | {areas[0]:.3f} | {areas[1]:.3f} |")


if __name__ == "__main__":
    main()
