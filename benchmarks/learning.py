"""What a line learns from what its server keeps: end of two days against clean training data.

    python benchmarks/learning.py --data FOLDER --category magnetic_tile --category pill

The story of examples/learning_line.py, played on features alone, for several draws of the pictures.
A model is fitted to 36 good pictures and 4 defective ones that nobody knows of. On each of two days
40 good and 10 defective pictures come by; somebody who makes no mistake judges those that the
server kept, and the training pictures that `review` shows; the model is fitted again. Two tables:

- *kept*: recall and false alarms at the end, by what the server kept, and their difference to a
  model of the same 116 good pictures, on pictures that no model saw.
- *hidden*: which share of the 4 is among the most unusual training pictures of the first day.
"""

import math

import click
import numpy as np
from dirt import Pictures

from dfm_mlflow.scores.to_review import FEWEST
from dfm_mlflow.scores.training import SHARE

GOOD, DIRT, DAY_GOOD, DAY_BAD, DAYS = 36, 4, 40, 10, 2
KEPT = {"flagged": None, "retest, retest=0.5": 0.5, "retest, retest=0.95": 0.95, "all": 1.0}
LOOKED_AT = (8, 12, 20, 30, 40)


class Line:
    """One draw of the pictures of a category."""

    def __init__(self, p: Pictures, seed: int, n_test: int, fpr: float):
        self.p, self.fpr = p, fpr
        rng = np.random.default_rng(seed)
        good, bad = rng.permutation(p.good), rng.permutation(p.bad)
        self.start = {*good[:GOOD].tolist(), *bad[:DIRT].tolist()}
        n_good, n_bad = GOOD, DIRT
        self.days = []
        for _ in range(DAYS):
            self.days.append([*good[n_good:][:DAY_GOOD], *bad[n_bad:][:DAY_BAD]])
            n_good, n_bad = n_good + DAY_GOOD, n_bad + DAY_BAD
        self.clean = set(good[:n_good].tolist())
        self.test = good[n_good:][:n_test], bad[n_bad:][:n_test]
        self._fits: dict[frozenset[int], tuple] = {}

    def fit(self, mine: set[int]):
        """A model, and its pictures with the most unusual first; no set is fitted twice."""
        known = frozenset(mine)
        if known not in self._fits:
            rows = np.array(sorted(mine, key=self.p.keys.__getitem__))
            model, held_out = self.p.fit(rows, 42)
            self._fits[known] = model, rows[np.argsort(-held_out)]
        return self._fits[known]

    def measured(self, mine: set[int]) -> np.ndarray:
        """Recall and false alarms on the test pictures."""
        model, _ = self.fit(mine)
        good, bad = (self.p.judge(model, rows, self.fpr)[1].mean() for rows in self.test)
        return np.array([bad, good])

    def learned(self, kept: float | None) -> set[int]:
        """The training set after the days."""
        mine = set(self.start)
        for day in self.days:
            model, order = self.fit(mine)
            scores, flagged = self.p.judge(model, np.array(day), self.fpr)
            band = flagged if kept is None else model.calibration.p_value(scores) <= kept
            shown = {int(i) for i, k in zip(day, band | flagged, strict=True) if k}
            shown |= set(order[: max(FEWEST, math.ceil(SHARE * len(order)))].tolist())
            bad = shown & set(self.p.bad.tolist())
            mine = (mine | shown) - bad
        return mine


def print_kept(category: str, lines: list[Line]) -> None:
    """Print a row for each thing that a server may keep."""
    clean = np.array([line.measured(line.clean) for line in lines])
    rows = [("day 0", [line.start for line in lines])]
    rows += [(f"keep={name}", [line.learned(r) for line in lines]) for name, r in KEPT.items()]
    rows.append(("clean", [line.clean for line in lines]))
    for name, sets in rows:
        found = np.array([line.measured(s) for line, s in zip(lines, sets, strict=True)])
        apart = np.abs(found - clean).max(axis=0)
        n = np.mean([len(s) for s in sets])
        recall, alarms = found.mean(axis=0)
        click.echo(
            f"| {category} | {name} | {n:.0f} | {recall:.3f} | {alarms:.3f} | {apart[0]:.3f} | "
            f"{apart[1]:.3f} |"
        )


def hidden(line: Line) -> list[float]:
    """Share of the defective pictures among the most unusual ones, by how many these are."""
    bad = np.isin(line.fit(line.start)[1], line.p.bad)
    return [bad[:n].sum() / bad.sum() for n in LOOKED_AT]


@click.command()
@click.option("--data", required=True, help="Folder of MVTec-layout categories.")
@click.option("--category", "categories", multiple=True, required=True, help="May be repeated.")
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--seeds", default=6, show_default=True, help="Draws of the pictures.")
@click.option("--test", "n_test", default=110, show_default=True, help="Good and bad, at most.")
@click.option("--fpr", default=0.05, show_default=True)
def main(data, categories, weights, seeds, n_test, fpr) -> None:
    """Print both tables."""
    sets = {c: Pictures(c, data, {"weights": weights}) for c in categories}
    drawn = {c: [Line(p, s, n_test, fpr) for s in range(seeds)] for c, p in sets.items()}
    click.echo(
        "| set | after two days | trained on | recall | false alarms | largest difference to clean "
        "data: recall | false alarms |\n" + "|---" * 7 + "|"
    )
    for category, lines in drawn.items():
        print_kept(category, lines)
    named = " | ".join(f"the first {n}" for n in LOOKED_AT)
    click.echo(f"\n| set | {named} |\n" + "|---" * (1 + len(LOOKED_AT)) + "|")
    for category, lines in drawn.items():
        shares = np.mean([hidden(line) for line in lines], axis=0)
        click.echo(f"| {category} | " + " | ".join(f"{s:.0%}" for s in shares) + " |")


if __name__ == "__main__":
    main()
