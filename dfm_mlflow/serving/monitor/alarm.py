"""The lifetime tests of a worker: one a class of each version, and what they have found."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.lifetime import LifetimeTest
from dfm_mlflow.errors import DataError

KINDS = ("flagged", "drift")
_MOST_VERSIONS = 16  # whose tests are remembered, so that a rollback goes on where it was

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watched:
    """What a test needs to know of a class's calibration."""

    n: int  # good pictures (groups) that p-values count, those left out as declared dirt included
    n_left_out: int  # of them, left out as declared dirt
    fpr: float  # rate of the decision

    @classmethod
    def of(cls, calibration: Calibration, fpr: float) -> "Watched":
        """Take what is needed from a `calibration`, whose decision has the rate `fpr`.

        What was left out counts as scoring higher than any picture: so its p-values promise, though
        the calibration holds only the rest.
        """
        m, n = calibration.n_left_out, calibration.n_groups
        a = max(fpr, 1 / (n + 1))  # p-values below that count as that
        return cls(n + m, m, (a * (n + 1) + m) / (n + m + 1))

    def p_value(self, p: float) -> float:
        """Turn a p-value `p` among the calibration into one among all."""
        kept = self.n - self.n_left_out
        return min(1.0, (p * (kept + 1) + self.n_left_out) / (self.n + 1))

    def test(self, promise: float, expected_flagged: float | None) -> LifetimeTest:
        """Begin a test."""
        least = LifetimeTest(self.n, self.fpr, promise=promise).expected_flagged
        expected = max(least, expected_flagged or 0.0)
        return LifetimeTest(self.n, self.fpr, expected_flagged=expected, promise=promise)


@dataclass(frozen=True)
class Alarm:
    """An alarm at the moment when it is raised."""

    kind: str  # the share of flagged pictures, or the p-values of those that are not
    model: str  # digest of the model
    category: str  # the class
    seen: int  # pictures of it that the test has been shown
    n_flagged: int  # of them, flagged
    evidence: float  # value of the test


class Watch:
    """Tests of all classes of all versions that a worker has served."""

    def __init__(self, promise: float, expected_flagged: float | None = None):
        self._promise, self._expected = promise, expected_flagged
        self._tests: dict[str, dict[str, LifetimeTest]] = {}
        self._watched: dict[str, Watched] = {}
        self._model = ""

    def begin(self, model: str, classes: Mapping[str, Watched]) -> None:
        """Go over to a version; one that was served before goes on where it was."""
        begun = {
            name: watched.test(self._promise / len(classes), self._expected)
            for name, watched in classes.items()
        }
        known = self._tests.pop(model, {})
        for name, test in begun.items():
            if name in known and _same(known[name], test):
                begun[name] = known[name]
        self._tests[model] = begun  # the last one is the one that is served
        self._watched, self._model = dict(classes), model
        for old in list(self._tests)[:-_MOST_VERSIONS]:
            del self._tests[old]

    def update(self, category: str, p_values: Sequence[float]) -> list[Alarm]:
        """Look at more pictures of a class, one after another."""
        test, watched = self._tests[self._model][category], self._watched[category]
        before = {kind: bool(getattr(test, kind).alarm) for kind in KINDS}
        test.update([watched.p_value(p) for p in p_values])
        return [
            Alarm(
                kind,
                self._model,
                category,
                int(test.flagged.shown),
                int(test.flagged.counts[0]),
                float(getattr(test, kind).evidence),
            )
            for kind in KINDS
            if getattr(test, kind).alarm and not before[kind]
        ]

    def state(self) -> dict[str, dict[str, float]]:
        """Say for each kind whether it has raised the alarm, and its evidence; of any class."""
        tests = self._tests.get(self._model, {}).values()
        return {
            kind: {
                "alarm": float(any(bool(getattr(t, kind).alarm) for t in tests)),
                "evidence": max((float(getattr(t, kind).evidence) for t in tests), default=1.0),
            }
            for kind in KINDS
        }

    def to_json(self) -> str:
        """All tests as a JSON text, from which :meth:`restore` goes on."""
        tests = {
            model: {name: test.to_json() for name, test in classes.items()}
            for model, classes in self._tests.items()
        }
        return json.dumps({"tests": tests})

    def restore(self, text: str) -> None:
        """Go on with the tests of :meth:`to_json`; call it before :meth:`begin`."""
        try:
            found = {
                str(model): {str(n): LifetimeTest.from_json(t) for n, t in classes.items()}
                for model, classes in json.loads(text)["tests"].items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(
                f"The state of the alarm is damaged ({type(error).__name__}): it starts over."
            ) from None
        self._tests = found


def _same(known: LifetimeTest, begun: LifetimeTest) -> bool:
    """Whether two tests are of one calibration and promise."""
    names = ("n", "fpr", "expected_flagged", "promise")
    return all(getattr(known, name) == getattr(begun, name) for name in names)
