"""Whole lives of servers: how often the lifetime test alarms for nothing, how soon for something.

    python benchmarks/lifetime.py                          # 400 lives of 100,000 pictures, each n
    python benchmarks/lifetime.py --pictures 5000 --n 300 --only false --only found
    python benchmarks/lifetime.py --n 300 --before good.csv --after darker.csv

Each life draws its own calibration of n scores and is then shown good pictures of the same
distribution, one by one. Printed are the shares of lives with an alarm within them:

- as promised: held-out scores and new ones have one distribution;
- held-out scores a little high: by 0.1 standard deviations, as cross-fitting leaves them;
- 2 % defects where 3 % flagged pictures are expected: the operator has said so;
- bursts: every good picture is shown five times in a row, which breaks the promise.

Then the median delay, in pictures, and the share of 100 lives in which a change is found within
10,000 pictures, where it comes with the first picture and after 5,000 good ones: 4 % defects (1 %
flagged become 5 %), and all scores higher by half a standard deviation. With --before and --after,
two CSV files with a column p_value as `dfm-mlflow score` writes them (good pictures, and the same
with another lamp, say), lives draw from these p-values instead. Exits with status 1 where more than
0.02 of the lives alarm at the promise of 0.01 (bursts aside).
"""

import sys
from collections.abc import Callable

import click
import numpy as np
import pandas as pd

from dfm_mlflow.core.lifetime import LifetimeTest

PROMISE, MOST = 0.01, 0.02
BLOCK = 1000  # pictures of each life drawn at a time
Scores = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def show(test: LifetimeTest, pictures: int, start: int, before: Scores, after: Scores, seed: int):
    """Show each life `start` pictures of one kind, then pictures of another."""
    rng = np.random.default_rng(seed)
    for first, last, kind in ((0, start, before), (start, pictures, after)):
        for i in range(first, last, BLOCK):
            test.update(kind(rng, (*test.flagged.seen.shape, min(BLOCK, last - i))))
    return test


def lives(
    n: int, many: int, pictures: int, after: Scores, start: int = 0, *, lift=0.0, burst=1, **given
) -> LifetimeTest:
    """Draw a calibration for each life, show it good pictures, then those that `after` draws."""
    known = np.sort(np.random.default_rng(n).normal(size=(many, n)) + lift, axis=1)
    # one ascending row for all lives: their scores lie far apart
    far = 100.0 * np.arange(many)[:, None]
    flat, first = (known + far).ravel(), n * np.arange(many)[:, None]

    def ranked(kind: Scores) -> Scores:
        def p_values(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
            scores = np.repeat(kind(rng, (many, -(-shape[1] // burst))), burst, axis=1)
            below = np.searchsorted(flat, scores[:, : shape[1]] + far) - first
            return (1 + n - below) / (n + 1)

        return p_values

    test = LifetimeTest(n, promise=PROMISE, shape=(many,), **given)
    return show(test, pictures, start, ranked(good), ranked(after), n)


def drawn(n: int, many: int, pictures: int, before: np.ndarray, after: np.ndarray, start: int):
    """Show p-values that are drawn from two lists."""
    kinds = [lambda rng, shape, p=p: rng.choice(p, shape) for p in (before, after)]
    return show(LifetimeTest(n, promise=PROMISE, shape=(many,)), pictures, start, *kinds, n)


def good(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape)


def with_defects(share: float) -> Scores:
    return lambda rng, shape: np.where(rng.random(shape) < share, 50, rng.normal(size=shape))


def higher(by: float) -> Scores:
    return lambda rng, shape: rng.normal(size=shape) + by


def false_alarms(n: int, many: int, pictures: int) -> float:
    """Print a row for each kind of life without change; give the largest share of alarms."""
    kinds = {
        "as promised": lives(n, many, pictures, good),
        "held-out scores 0.1 sd high": lives(n, many, pictures, good, lift=0.1),
        "2 % defects, 3 % expected": lives(
            n, many, pictures, with_defects(0.02), expected_flagged=0.03 + (n < 99) * 0.01
        ),
        "bursts of five": lives(n, many, pictures, good, burst=5),
    }
    shares = []
    for name, test in kinds.items():
        either, flagged, drift = (x.alarm.mean() for x in (test, test.flagged, test.drift))
        click.echo(f"| {n} | {name} | {either:.4f} | {flagged:.4f} | {drift:.4f} |")
        shares.append(either * (name != "bursts of five"))
    return max(shares)


def found(signal, start: int) -> str:
    """Share of lives in which a signal found the change, and its median delay."""
    at = signal.alarmed_at
    after = at[at > start] - start
    delay = f"{np.median(after):.0f}" if len(after) else "-"
    return f"{len(after) / len(at):.2f} | {delay}"


def row(n: int, name: str, start: int, test: LifetimeTest) -> None:
    click.echo(
        f"| {n} | {name} | {start} | {found(test.flagged, start)} | {found(test.drift, start)} |"
    )


@click.command()
@click.option("--n", "sizes", multiple=True, type=int, default=(50, 300, 1000), show_default=True)
@click.option("--lives", "many", default=400, show_default=True)
@click.option("--pictures", default=100_000, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(["false", "promised", "found"]))
@click.option("--before", type=click.Path(exists=True), help="CSV with a column p_value.")
@click.option("--after", type=click.Path(exists=True), help="The same of changed pictures.")
def main(sizes, many, pictures, only, before, after) -> None:
    """Print Markdown tables."""
    for n in sizes:
        test = LifetimeTest(n, promise=PROMISE)
        sees = ", ".join(f"{x:.2f}" for x in test.drift.limit)
        click.echo(
            f"n = {n}: from the first picture on, a share of flagged pictures up to "
            f"{test.flagged.limit[0]:.3f} may stay unseen; of others with small p-values: {sees}."
        )
    worst = 0.0
    if not only or set(only) & {"false", "promised"}:
        click.echo("\n| n | lives | any alarm | flagged | drift |\n|---|---|---|---|---|")
        for n in sizes:
            if "promised" in only:
                test = lives(n, many, pictures, good)
                shares = [x.alarm.mean() for x in (test, test.flagged, test.drift)]
                click.echo(
                    f"| {n} | as promised | " + " | ".join(f"{s:.4f}" for s in shares) + " |"
                )
                worst = max(worst, shares[0])
            else:
                worst = max(worst, false_alarms(n, many, pictures))
    if not only or "found" in only:
        click.echo(
            "\n| n | change | after | flagged: found | median delay | drift: found | median delay |"
        )
        click.echo("|---|---|---|---|---|---|---|")
        for n in sizes:
            for start in (0, 5000):
                for name, change in (
                    ("4 % defects", with_defects(0.04)),
                    ("0.5 sd higher", higher(0.5)),
                ):
                    row(n, name, start, lives(n, 100, start + 10_000, change, start))
                if before and after:
                    p = [pd.read_csv(f)["p_value"].dropna().to_numpy() for f in (before, after)]
                    row(n, after, start, drawn(n, 100, start + 10_000, *p, start))
    sys.exit(0 if worst <= MOST else 1)


if __name__ == "__main__":
    main()
