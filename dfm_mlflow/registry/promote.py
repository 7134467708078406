"""From a registered version to an alias that points to it, through gates, on the record."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.errors import ConfigError, PromotionError
from dfm_mlflow.mlflow_plugin.model_uri import resolve
from dfm_mlflow.registry.aliases import NONE, Move, holder, make_move, user, utc_now, version_of
from dfm_mlflow.registry.all_gates import run_gates
from dfm_mlflow.registry.gates import Gate
from dfm_mlflow.scores.verdict import RESULT
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.run import as_given, log_parameters, run_of

DECISION = "decision.json"
MOVED, WOULD_MOVE, REFUSED, OVERTAKEN = "moved", "would move", "refused", "overtaken"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromoteResult:
    """What a promotion decided and did.

    Attributes
    ----------
    run_id : str
    model, version, to : str
    previous : str
        Version that held the alias before, or ``none``.
    outcome : str
        ``moved``, or ``would move`` in a dry run.
    gates : list of Gate
    forced : list of str
        Names of the gates that refused and were overruled.
    """

    run_id: str
    model: str
    version: str
    to: str
    previous: str
    outcome: str
    gates: list[Gate]
    forced: list[str]

    def summary(self) -> str:
        """Say in a few lines what was decided."""
        lines = [_line(gate, self.forced) for gate in self.gates]
        previous = "no version" if self.previous == NONE else f"version {self.previous}"
        verb = "points" if self.outcome == MOVED else "would point"
        lines.append(
            f"{self.to} of {self.model} {verb} to version {self.version}; before, to {previous}."
        )
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Say the same for scripts."""
        keys = ("run_id", "model", "version", "to", "previous", "outcome", "forced")
        return {key: getattr(self, key) for key in keys} | {"alias": self.to}


def promote(options: PromoteOptions, *, experiment: str = AUTO) -> PromoteResult:
    """Let an alias point to a version if it passes every gate, in the active or a new run.

    The run holds the decision as ``decision.json``, that of a refusal too; the version holds who
    promoted it, when, why, with what figures, and which version it replaced.

    Parameters
    ----------
    options : PromoteOptions
    experiment : str
        Name of the experiment of a new run; ``auto`` is what MLflow was told, else that of the run
        that made the version.

    Raises
    ------
    PromotionError
        If a gate refuses, in a dry run too, or the alias was moved by somebody else meanwhile.
    """
    client = MlflowClient()
    options = _settled(options)
    before = holder(client, options.model, options.alias)
    version = version_of(client, options.model, options.version)
    if before == options.version:
        raise PromotionError(
            f"{options.alias} of {options.model} points to version {before} already: give another "
            "version, or another alias."
        )
    move = Move.plan(options.model, options.alias, before, options.version)
    name = f"promote-{options.model}-{options.version}-{options.alias}"
    tags = {"dfm.job": "promote", "dfm.promotion.id": move.id}
    with run_of(name, tags, experiment, _experiment_of(client, version)) as run:
        params = {f"resolved_{key}": value for key, value in options.model_dump().items()}
        log_parameters(run.info.run_id, params | as_given(options))
        gates = run_gates(client, options, version, before)
        failed = [g for g in gates if not g.passed]
        barred = [g for g in failed if not (options.force and g.may_be_forced)]
        forced = [] if barred else [g.name for g in failed]
        decision = _decision(options, move, run.info.run_id, gates, forced)
        outcome, error = _act(client, options, move, decision, barred)
        _record(decision | {"outcome": outcome, "sentence": str(error or "")}, gates)
        if error:
            raise error
    return PromoteResult(
        run.info.run_id,
        options.model,
        options.version,
        options.alias,
        before or NONE,
        outcome,
        gates,
        forced,
    )


def _settled(options: PromoteOptions) -> PromoteOptions:
    """Name the registered model and the version that an address means."""
    if not options.model.startswith("models:/"):
        return options
    found = resolve(options.model).version
    assert found is not None  # the pattern of the option asks for a registered one
    version = str(found.version)
    if options.version not in ("auto", version):
        raise ConfigError(
            f"model={options.model} is version {version} and version={options.version} another "
            "one: give one of them."
        )
    return options.model_copy(update={"model": str(found.name), "version": version})


def _experiment_of(client: MlflowClient, version: ModelVersion) -> str | None:
    """Name of the experiment that holds the version's run, where that can be known."""
    try:
        run = client.get_run(str(version.run_id))
        return str(client.get_experiment(run.info.experiment_id).name)
    except MlflowException:
        return None


def _decision(
    options: PromoteOptions, move: Move, run_id: str, gates: Sequence[Gate], forced: list[str]
) -> dict[str, Any]:
    return {
        "model": options.model,
        "version": options.version,
        "to": options.alias,
        "previous": move.before or NONE,
        "promotion_id": move.id,
        "run_id": run_id,
        "by": user(),
        "at": utc_now(),
        "reason": options.reason,
        "dry_run": options.dry_run,
        "forced": forced,
        "limits": {
            k: v
            for k, v in options.model_dump().items()
            if isinstance(v, int | float) and not isinstance(v, bool)
        },
        "gates": [asdict(gate) for gate in gates],
    }


def _act(
    client: MlflowClient,
    options: PromoteOptions,
    move: Move,
    decision: dict[str, Any],
    barred: Sequence[Gate],
) -> tuple[str, PromotionError | None]:
    """Move the alias, unless a gate or a dry run is in the way; gives the outcome, never raises."""
    if barred:
        why = " ".join(gate.sentence for gate in barred)
        return REFUSED, PromotionError(
            f"{options.model} version {options.version} is not promoted to {options.alias}. {why}"
        )
    if options.dry_run:
        return WOULD_MOVE, None
    figures = {k: v for gate in decision["gates"] for k, v in gate["figures"].items()}
    texts = {key: decision[key] for key in ("by", "at", "reason", "previous", "run_id")} | {
        "id": move.id,
        "forced": ",".join(decision["forced"]) or NONE,
        "figures": json.dumps(figures),
    }
    tags = {f"dfm.promotion.{options.alias}.{key}": text for key, text in texts.items()}
    try:
        make_move(client, move, {options.version: tags})
    except PromotionError as error:
        return OVERTAKEN, error
    if decision["forced"]:
        _logger.warning("Forced past the gates %s: %s", texts["forced"], options.reason)
    return MOVED, None


def _record(decision: dict[str, Any], gates: Sequence[Gate]) -> None:
    mlflow.log_dict(decision, DECISION)
    mlflow.log_metrics({k: float(v) for gate in gates for k, v in gate.figures.items()})
    mlflow.set_tag("dfm.promotion.outcome", decision["outcome"])
    told = RESULT if decision["outcome"] in (MOVED, WOULD_MOVE) else None  # else by nobody
    for gate in gates:
        _logger.info(_line(gate, decision["forced"]), extra=told)


def _line(gate: Gate, forced: Sequence[str]) -> str:
    mark = "passed" if gate.passed else "FORCED" if gate.name in forced else "FAILED"
    return f"{mark}  {gate.name:15s} {gate.sentence}"
