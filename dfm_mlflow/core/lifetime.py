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
from typing import Any

import numpy as np

from dfm_mlflow.errors import ConfigError, DataError

LEVELS = (0.02, 0.05, 0.1, 0.25, 0.5)  # u at which p-values of unflagged pictures are watched
LIFTS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # alternatives: factors on the odds of u
_SURE = 0.8  # posterior probability of a share above `limit` that is an alarm by itself
_MOST = 1e100  # a bet is worth no more: no overflow, and still an e-process
_PARAMETERS = ("n", "fpr", "expected_flagged", "promise")


class ShareTest:
    """An e-process against "the share of pictures with p <= u is what the calibration lets expect".

    Half of the evidence is ``P(share > limit | pictures so far) / P(share > limit)`` under the
    calibration's law of the share. It grows with every ``p <= u``, so the test is one-sided, and it
    finds a share that has been too high from the first picture on. The other half finds changes: it
    bets, from each picture on (Shiryaev's mixture over the time of a change, late ones with less
    weight), that the odds are one of :data:`LIFTS` times those expected, against the share seen so
    far, or the expected one where that is larger. The evidence of several u is averaged.

    Parameters
    ----------
    n : int
        Good pictures that p-values count.
    hits : sequence of int
        ``a = u (n + 1)`` of each u: ``p <= u`` is a rank of at most a among n + 1.
    promise : float
        Probability of a false alarm in a whole life.
    expected : float, optional
        Share of ``p <= u`` that is expected; ``a / (n + 1)`` by default, and never less. It counts
        as known as well as n pictures tell.
    shape : tuple of int
        Lives side by side, for simulations; one by default.

    Attributes
    ----------
    alarmed_at : ndarray of the given shape, int
        How many pictures it had been shown when the evidence first reached ``1 / promise``; 0 as
        long as it has not.
    seen : ndarray of the given shape, int
        Pictures among those shown that count.
    counts : ndarray of shape (..., len(hits)), int
        Those of them with ``p <= u``.
    limit : ndarray of shape (len(hits),)
        A larger share is sure to be found, even if it was there from the first picture on.
    """

    _STATE = ("shown", "seen", "counts", "alarmed_at", "_tail", "_log_density", "_bets")

    def __init__(
        self,
        n: int,
        hits: tuple[int, ...],
        promise: float,
        expected: float = 0.0,
        shape: tuple[int, ...] = (),
    ):
        from scipy.special import betaincc, betainccinv, betaln

        self.promise, self._hits, self._total = promise, np.array(hits), n + 1
        self._a = np.maximum(self._hits.astype(float), expected * self._total)
        self._share = self._a / self._total
        b = self._total - self._a
        self.limit = betainccinv(self._a, b, 0.5 * _SURE * promise / len(hits))
        self._prior = betaincc(self._a, b, self.limit)
        log_density = self._a * np.log(self.limit) + b * np.log1p(-self.limit) - betaln(self._a, b)
        odds = (self._share / (1 - self._share))[:, None] * LIFTS
        self._raised = odds / (1 + odds)
        each, wide = (*shape, len(hits)), (*shape, len(hits), len(LIFTS))
        self.shown = np.zeros((), int)
        self.seen, self.alarmed_at = np.zeros(shape, int), np.zeros(shape, int)
        self.counts = np.zeros(each, int)
        self._tail, self._bets = np.broadcast_to(self._prior, each).copy(), np.zeros(wide)
        self._log_density = np.broadcast_to(log_density, each).copy()

    @property
    def alarm(self) -> np.ndarray:
        """Whether the evidence has ever reached ``1 / promise``."""
        alarm: np.ndarray = self.alarmed_at > 0
        return alarm

    @property
    def evidence(self) -> np.ndarray:
        """Value of the e-process."""
        not_yet = 1 / np.log2(self.seen + 2)  # weight of starts that are still to come
        change = self._bets.mean(axis=(-2, -1)) + not_yet
        evidence: np.ndarray = 0.5 * (self._tail / self._prior).mean(axis=-1) + 0.5 * change
        return evidence

    def update(self, rank: np.ndarray | int, among: np.ndarray | bool = True) -> None:
        """Look at one more picture.

        Parameters
        ----------
        rank : int or ndarray of the given shape, int
            ``p (n + 1)``, from 1 to n + 1.
        among : bool or ndarray of the given shape, bool
            Lives in which the picture counts.
        """
        hit, here = np.asarray(rank)[..., None] <= self._hits, np.asarray(among)[..., None]
        a, total = self._a + self.counts, self._total + self.seen[..., None]
        usual = np.maximum(self._share, a / total)
        self._bet(hit, usual, here)
        # T(a, b) = 1 - I_c(a, b) and D(a, b) = c^a (1 - c)^b / B(a, b) from those of the last
        # picture: T(a + 1, b) = T + D / a, T(a, b + 1) = T - D / b
        happened = np.where(hit, a, total - a)
        step = np.exp(self._log_density) / happened
        self._tail = np.where(here, self._tail + np.where(hit, step, -step), self._tail).clip(0, 1)
        moved = np.log(np.where(hit, self.limit, 1 - self.limit) * total / happened)
        self._log_density = self._log_density + np.where(here, moved, 0)
        self.counts, self.seen = self.counts + (hit & here), self.seen + here[..., 0]
        self.shown += 1
        over = (self.alarmed_at == 0) & (self.evidence >= 1 / self.promise)
        self.alarmed_at = np.where(over, self.shown, self.alarmed_at)

    def _bet(self, hit: np.ndarray, usual: np.ndarray, here: np.ndarray) -> None:
        """Start the bets of this picture; all alternatives above the usual share are paid."""
        starting = 1 / np.log2(self.seen + 2) - 1 / np.log2(self.seen + 3)
        ratio = np.where(hit[..., None], self._raised, 1 - self._raised)
        ratio /= np.where(hit, usual, 1 - usual)[..., None]
        ratio[self._raised <= usual[..., None]] = 1
        if not here.all():
            ratio[np.broadcast_to(~here[..., 0], self.seen.shape)] = 1
            starting = starting * here[..., 0]
        self._bets += starting[..., None, None]
        self._bets *= ratio
        np.minimum(self._bets, _MOST, out=self._bets)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, in types of JSON."""
        return {name.lstrip("_"): getattr(self, name).tolist() for name in self._STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the `state` of a test with the same parameters.

        Raises
        ------
        DataError
            If it is not one.
        """
        for name in self._STATE:
            old = getattr(self, name)
            try:
                value = np.asarray(state[name.lstrip("_")], dtype=old.dtype)
            except (KeyError, TypeError, ValueError):
                value = None
            if value is None or value.shape != old.shape or not np.isfinite(value).all():
                raise DataError(
                    f"The state of the lifetime test has no {name.lstrip('_')} of shape "
                    f"{old.shape}: start a new test, or give the state that to_json() wrote."
                )
            setattr(self, name, value)


class LifetimeTest:
    """Two signals over the life of a server, which are never mixed.

    ``flagged`` watches the share of pictures that are flagged, ``drift`` the p-values of those that
    are not, ranked among the calibration's good pictures that are not flagged either: ``(p - fpr) /
    (1 - fpr)``. So defects, which are flagged, do not raise ``drift``, and a change of lamp or lens
    that flags nothing does. Each signal has half of the promise.

    A picture costs the same whether it is the first or the millionth, and the state has a few dozen
    numbers. Watch one category by one test; with several, divide the promise by their number.

    Parameters
    ----------
    n : int
        Good pictures of the calibration (groups, where p-values count them), at least 2.
    fpr : float
        False-positive rate of the decision, in (0, 1); ``1 / (n + 1)`` where that is larger.
    expected_flagged : float, optional
        Share of flagged pictures, good and defective, that is expected; the rate that the
        calibration can promise by default, and never less.
    promise : float
        Probability that either signal raises a false alarm in a whole life, in (0, 1).
    shape : tuple of int
        Lives side by side, for simulations; one by default.

    Raises
    ------
    ConfigError
        For a parameter out of its range.

    Attributes
    ----------
    flagged, drift : ShareTest
        Evidence and alarm of each signal. ``flagged.limit`` is the share of flagged pictures above
        which it is sure to alarm, even if it was that high from the first picture on.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> test = LifetimeTest(300)
    >>> for p in rng.integers(1, 302, size=2000) / 301:
    ...     test.update(p)
    >>> bool(test.flagged.alarm), bool(test.drift.alarm)
    (False, False)
    >>> for p in rng.integers(1, 31, size=200) / 301:  # all p-values at or below 0.1
    ...     test.update(p)
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

    def update(self, p_value: float | np.ndarray) -> None:
        """Look at one more picture.

        Parameters
        ----------
        p_value : float or ndarray of the given shape
            Under the picture's category.

        Raises
        ------
        ConfigError
            For a p-value outside (0, 1].
        """
        p = np.asarray(p_value, dtype=np.float64)
        if not ((p > 0) & (p <= 1)).all():
            raise ConfigError(
                f"p_value={p_value} is outside (0, 1]: leave out pictures that have no p-value."
            )
        # up, to the grid 1 / (n + 1): no p-value counts for more than it says
        rank = np.maximum(np.ceil(p * (self.n + 1) * (1 - 1e-12)), 1).astype(int)
        self.flagged.update(rank)
        self.drift.update(rank - self._n_flagged, rank > self._n_flagged)

    def to_json(self) -> str:
        """Parameters and state as a JSON text, from which :meth:`from_json` goes on."""
        own = {name: getattr(self, name) for name in _PARAMETERS}
        return json.dumps(own | {"flagged": self.flagged.state(), "drift": self.drift.state()})

    @classmethod
    def from_json(cls, text: str) -> "LifetimeTest":
        """Go on with one life where :meth:`to_json` left it: all further numbers are the same.

        Parameters
        ----------
        text : str

        Returns
        -------
        LifetimeTest

        Raises
        ------
        DataError
            If the text is something else.
        """
        try:
            data = json.loads(text)
            test = cls(data["n"], **{name: data[name] for name in _PARAMETERS if name != "n"})
            states = data["flagged"], data["drift"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                f"The text is no lifetime test ({type(error).__name__}): give what to_json() wrote."
            ) from None
        for share, state in zip((test.flagged, test.drift), states, strict=True):
            share.restore(state)
        return test


def _check_rates(n: int, fpr: float, promise: float) -> None:
    if n < 2:
        raise ConfigError(f"n={n} good pictures calibrate nothing to watch: 2 are needed.")
    for name, value in (("fpr", fpr), ("promise", promise)):
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value} is outside (0, 1): give a rate such as 0.01.")
