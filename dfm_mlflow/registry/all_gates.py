"""The gates of a promotion, in their order: what each looks at, and which end the list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.errors import PromotionError
from dfm_mlflow.images.read import read_picture
from dfm_mlflow.mlflow_plugin.golden import load_golden
from dfm_mlflow.registry.candidate import Candidate, load_candidate
from dfm_mlflow.registry.comparison_gates import COMPARISON, comparison_gates
from dfm_mlflow.registry.cost_gates import cost_gates
from dfm_mlflow.registry.gates import Gate, golden_gate, metrics_gate
from dfm_mlflow.registry.operating_gates import false_alarm_gate, recall_gate
from dfm_mlflow.registry.rivals import Rival, Scored, load_rivals, score_all

_TIMED = 8  # pictures in a timed call
_NOTHING = pd.DataFrame({"defective": [], "category": []})


@dataclass(frozen=True, eq=False)
class Case:
    """What the gates decide on; whatever costs time is loaded when a gate first asks for it."""

    client: MlflowClient
    options: PromoteOptions
    version: ModelVersion
    before: str | None  # version that holds the alias

    @cached_property
    def challenger(self) -> Candidate:
        """The version to promote."""
        return load_candidate(self.client, self.version)

    @cached_property
    def _rivals(self) -> tuple[list[Rival], str]:
        return load_rivals(self.client, self.options, self.before)

    @cached_property
    def _scored(self) -> tuple[Scored | None, str]:
        return score_all(self.options, self.challenger, self.rivals)

    @property
    def rivals(self) -> list[Rival]:
        """The version that holds the alias, then the best that ever did."""
        return self._rivals[0]

    @property
    def scored(self) -> Scored | None:
        """The test pictures under all versions, or None where there are none."""
        return self._scored[0]

    @property
    def own_scores(self) -> pd.DataFrame | None:
        """The test pictures under the version to promote, or None where there are none."""
        return self.scored.tables[0] if self.scored else None

    @property
    def trouble(self) -> str:
        """Why nothing can be compared, or nothing."""
        return self._rivals[1] or self._scored[1]


def _artifact(case: Case) -> list[Gate]:
    try:
        case.challenger  # noqa: B018  # loads it
    except PromotionError as error:
        return [Gate("artifact", False, str(error), may_be_forced=False)]
    sentence = "The model loads, every hash is right, and it holds neither pickle nor code."
    return [Gate("artifact", True, sentence)]


def _golden(case: Case) -> list[Gate]:
    return [golden_gate(case.challenger)]


def _metrics(case: Case) -> list[Gate]:
    source = case.scored.source if case.scored else ""
    return [metrics_gate(case.challenger, case.options, case.own_scores, source)]


def _operating(case: Case) -> list[Gate]:
    if case.own_scores is None:
        return []
    return [
        recall_gate(case.challenger, case.options, case.own_scores),
        false_alarm_gate(case.challenger, case.own_scores),
    ]


def _comparison(case: Case) -> list[Gate]:
    if case.before is None:
        sentence = f"No version holds {case.options.alias} yet, so there is none to compare with."
        return [Gate(COMPARISON, True, sentence)]
    if case.trouble:
        sentence = f"A comparison with version {case.before} is not possible: {case.trouble}"
        return [Gate(COMPARISON, False, sentence)]
    tables = case.scored.tables if case.scored else [_NOTHING] * (1 + len(case.rivals))
    gates: list[Gate] = []
    for rival, table in zip(case.rivals, tables[1:], strict=True):
        pair = tables[0], table
        gates += comparison_gates(
            case.challenger, rival.candidate, case.options, pair, rival.by, rival.best
        )
        if not gates[0].figures:  # there is nothing to compare on
            break
    return gates


def _costs(case: Case) -> list[Gate]:
    if not case.rivals:
        return []
    holder = case.rivals[0].candidate
    return cost_gates(case.challenger, holder, case.options, _to_time(case))


def _to_time(case: Case) -> list[bytes]:
    """Pictures to time: of the test set, which have the line's size, or else the golden ones."""
    scored = case.scored
    if scored is None or scored.catalog is None or scored.tables[0].empty:
        return list(load_golden(str(case.version.run_id))["image"])
    return [read_picture(scored.catalog.test[i].path) for i in scored.tables[0].index[:_TIMED]]


@dataclass(frozen=True)
class Step:
    """A step of the decision: one or several gates, or none where it does not apply."""

    gates: Callable[[Case], list[Gate]]
    ends: bool = False  # whether the steps after a refusal are left out


STEPS = (
    Step(_artifact, ends=True),
    Step(_golden, ends=True),
    Step(_metrics),
    Step(_operating),
    Step(_comparison),
    Step(_costs),
)


def run_gates(
    client: MlflowClient,
    options: PromoteOptions,
    version: ModelVersion,
    before: str | None,
    steps: Sequence[Step] = STEPS,
) -> list[Gate]:
    """Run every gate; the ones after a broken model are left out."""
    case, gates = Case(client, options, version, before), list[Gate]()
    for step in steps:
        found = step.gates(case)
        gates += found
        if step.ends and not all(gate.passed for gate in found):
            break
    return gates
