"""A test over a server's whole life: whether new pictures still look like the calibration's.

Given one calibration of n good pictures, p-values of good pictures are *not* uniform: the share
``theta`` of them with ``p <= u`` is a random number that the calibration has fixed once and for
all, and a test of uniformity is certain to raise a false alarm in the end. Over all calibrations
the law of that number is known, whatever the scores' distribution: ``Beta(a, n + 1 - a)`` with
``a = floor(u (n + 1))``. This test takes that law as its null hypothesis. If k of t pictures had
``p <= u``, the next one has it with probability ``(a + k) / (n + 1 + t)``, as each picture is
ranked among the calibration and all earlier ones (Polya's urn), and an e-process bets against it
(Ramdas, Gruenwald, Vovk & Shafer, Statistical Science 38, 2023; Vovk, Gammerman & Shafer,
Algorithmic Learning in a Random World, 2022, chapter 8). By Ville's inequality it reaches
``1 / promise`` in at most the promised share of lives, each with a calibration of its own, however
long they last.

The promise is for pictures that are independent of each other: bursts (one part photographed
several times) break it. Where p-values count groups, give the number of groups: the law is then
nearly this one. A p-value below ``1 / (n + 1)``, as ``tail=gpd`` estimates, counts as that.
"""

import json
import math
from collections.abc import Sequence

import numpy as np

from dfm_mlflow.core.share_test import ShareTest
from dfm_mlflow.errors import ConfigError, DataError

LEVELS = (0.02, 0.05, 0.1, 0.25, 0.5)  # u at which p-values of unflagged pictures are watched
_PARAMETERS = ("n", "fpr", "expected_flagged", "promise")


class LifetimeTest:
    """Two signals over the life of a server, which are never mixed.

    ``flagged`` watches the share of pictures that are flagged, ``drift`` the p-values of those that
    are not, ranked among the calibration's good pictures that are not flagged either: ``(p - fpr) /
    (1 - fpr)``. So defects, which are flagged, do not raise ``drift``, and a change of lamp or lens
    that flags nothing does. Each signal has half of the promise.

    A picture costs the same whether it is the first or the millionth, and the state has a few dozen
    numbers. Watch one category by one test; with several, divide the promise by their number.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> test = LifetimeTest(300)
    >>> test.update(rng.integers(1, 302, size=2000) / 301)
    >>> bool(test.flagged.alarm), bool(test.drift.alarm)
    (False, False)
    >>> test.update(rng.integers(1, 31, size=200) / 301)  # all p-values at or below 0.1
    >>> bool(test.flagged.alarm), bool(test.drift.alarm)
    (True, True)
    """

    def __init__(
        self,
        n: int,
        fpr: float = 0.01,
        *,
        expected_flagged: float | None = None,
        promise: float = 0.01,
        shape: tuple[int, ...] = (),
    ):
        _check_rates(n, fpr, promise)
        flagged = max(1, math.floor(fpr * (n + 1) * (1 + 1e-12)))
        if flagged >= n:
            raise ConfigError(
                f"At fpr={fpr} {flagged} of {n + 1} ranks are flagged and none is left to watch: "
                "give a smaller fpr."
            )
        least = flagged / (n + 1)
        expected = least if expected_flagged is None else expected_flagged
        if not least * (1 - 1e-9) <= expected < 1:
            raise ConfigError(
                f"expected_flagged={expected} is not from {least:.3g}, which {n} good pictures "
                "promise for good ones alone, to 1: give a share in that range."
            )
        self.n, self.fpr, self.expected_flagged, self.promise = n, fpr, expected, promise
        self._n_flagged = flagged
        rest = n - flagged
        hits = {math.floor(level * (rest + 1)) for level in LEVELS} - {0}
        self.flagged = ShareTest(n, (flagged,), promise / 2, expected, shape)
        self.drift = ShareTest(rest, tuple(sorted(hits)), promise / 2, shape=shape)

    @property
    def alarm(self) -> np.ndarray:
        """Whether either signal has raised the alarm."""
        alarm: np.ndarray = self.flagged.alarm | self.drift.alarm
        return alarm

    def update(self, p_values: np.ndarray | Sequence[float] | float) -> None:
        """Look at more pictures, one after another.

        p_values: (..., m): Of one picture, or of m in the order in which they came, under their
          category.
        """
        p = np.atleast_1d(np.asarray(p_values, dtype=np.float64))
        wrong = ~((p > 0) & (p <= 1))
        if wrong.any():
            raise ConfigError(
                f"p_value={p[wrong][0]} is outside (0, 1]: leave out pictures that have no p-value."
            )
        # up, to the grid 1 / (n + 1): no p-value counts for more than it says
        ranks = np.maximum(np.ceil(p * (self.n + 1) * (1 - 1e-12)), 1).astype(int)
        self.flagged.update(ranks)
        self.drift.update(ranks - self._n_flagged, ranks > self._n_flagged)

    def to_json(self) -> str:
        """Parameters and state as a JSON text, from which :meth:`from_json` goes on."""
        own = {name: getattr(self, name) for name in _PARAMETERS}
        return json.dumps(own | {"flagged": self.flagged.state(), "drift": self.drift.state()})

    @classmethod
    def from_json(cls, text: str) -> "LifetimeTest":
        """Go on with one life where :meth:`to_json` left it: all further numbers are the same."""
        try:
            data = json.loads(text)
            test = cls(data["n"], **{name: data[name] for name in _PARAMETERS if name != "n"})
            states = data["flagged"], data["drift"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                f"The text is not a lifetime test ({type(error).__name__}): give what to_json() "
                "wrote."
            ) from None
        for share, state in zip((test.flagged, test.drift), states, strict=True):
            share.restore(state)
        return test


def _check_rates(n: int, fpr: float, promise: float) -> None:
    if n < 2:
        raise ConfigError(f"n={n} good pictures are too few to calibrate on: 2 are needed.")
    for name, value in (("fpr", fpr), ("promise", promise)):
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value} is outside (0, 1): give a rate such as 0.01.")
