"""An e-process against "the share of small p-values is what the calibration lets expect".

The law of that share is Beta over all calibrations; see :mod:`dfm_mlflow.core.lifetime`.
"""

from typing import Any

import numpy as np

from dfm_mlflow.errors import DataError

LIFTS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # alternatives: factors on the odds of u
_SURE = 0.8  # posterior probability of a share above `limit` that is an alarm by itself
_BLOCK = 64  # pictures looked at in one go
_MOST = 1e100  # a bet is worth no more: no overflow, and still an e-process


class ShareTest:
    """An e-process against "the share of pictures with p <= u is what the calibration lets expect".

    Half of the evidence is ``P(share > limit | pictures so far) / P(share > limit)`` under the
    calibration's law of the share. It grows with every ``p <= u``, so the test is one-sided, and it
    finds a share that has been too high from the first picture on. The other half finds changes: it
    bets, from each picture on (Shiryaev's mixture over the time of a change, late ones with less
    weight), that the odds are one of :data:`LIFTS` times those expected, against the share seen so
    far, or the expected one where that is larger. The evidence of several u is averaged.

    Shapes: counts (..., len(hits)) int; limit (len(hits),).
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
        return self._evidence(self._tail, self._bets, self.seen)

    def update(self, ranks: np.ndarray, among: np.ndarray | None = None) -> None:
        """Look at more pictures, one after another.

        Shapes: ranks (..., m) int; among (..., m) bool.
        """
        among = np.ones(ranks.shape, bool) if among is None else among
        for start in range(0, ranks.shape[-1], _BLOCK):
            block = slice(start, start + _BLOCK)
            self._update(ranks[..., block, None] <= self._hits, among[..., block])

    def _update(self, hit: np.ndarray, here: np.ndarray) -> None:
        counted = hit & here[..., None]
        counts = self.counts[..., None, :] + np.cumsum(counted, axis=-2)
        seen = self.seen[..., None] + np.cumsum(here, axis=-1)
        # before each picture
        a, t = self._a + counts - counted, seen - here
        total = self._total + t[..., None]
        bets = self._paid(hit, np.maximum(self._share, a / total), here, t)
        # T(a, b) = 1 - I_c(a, b) and D(a, b) = c^a (1 - c)^b / B(a, b) follow from those before:
        # T(a + 1, b) = T + D / a and T(a, b + 1) = T - D / b
        happened = np.where(hit, a, total - a)
        moved = np.log(np.where(hit, self.limit, 1 - self.limit) * total / happened)
        log_density = self._log_density[..., None, :] + np.cumsum(
            np.where(here[..., None], moved, 0), axis=-2
        )
        before = np.concatenate([self._log_density[..., None, :], log_density[..., :-1, :]], -2)
        step = np.where(hit, 1, -1) * np.exp(before) / happened
        tail = self._tail[..., None, :] + np.cumsum(np.where(here[..., None], step, 0), axis=-2)
        evidence = self._evidence(tail.clip(0, 1), bets, seen)
        over = evidence >= 1 / self.promise
        first = self.shown + 1 + over.argmax(axis=-1)
        self.alarmed_at = np.where(
            (self.alarmed_at == 0) & over.any(axis=-1), first, self.alarmed_at
        )
        self.shown = self.shown + here.shape[-1]
        self.counts, self.seen = counts[..., -1, :], seen[..., -1]
        self._tail, self._log_density = tail[..., -1, :].clip(0, 1), log_density[..., -1, :]
        self._bets = np.minimum(bets[..., -1, :, :], _MOST)

    def _paid(
        self, hit: np.ndarray, base_rate: np.ndarray, here: np.ndarray, t: np.ndarray
    ) -> np.ndarray:
        """Worth of the bets of each alternative after each picture.

        A bet is multiplied by the likelihood ratio if the alternative is above the base rate.
        """
        starting = (1 / np.log2(t + 2) - 1 / np.log2(t + 3)) * here
        ratio = np.where(hit[..., None], self._raised, 1 - self._raised)
        ratio /= np.where(hit, base_rate, 1 - base_rate)[..., None]
        ratio[self._raised <= base_rate[..., None]] = 1
        ratio[~here] = 1
        product = np.cumprod(ratio, axis=-3)
        started = np.cumsum(starting[..., None, None] * (ratio / product), axis=-3)
        paid: np.ndarray = product * (self._bets[..., None, :, :] + started)
        return paid

    def _evidence(self, tail: np.ndarray, bets: np.ndarray, seen: np.ndarray) -> np.ndarray:
        not_yet = 1 / np.log2(seen + 2)  # weight of starts that are still to come
        change = bets.mean(axis=(-2, -1)) + not_yet
        evidence: np.ndarray = 0.5 * (tail / self._prior).mean(axis=-1) + 0.5 * change
        return evidence

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, in types of JSON."""
        return {name.lstrip("_"): getattr(self, name).tolist() for name in self._STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the `state` of a test with the same parameters."""
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
