"""Where a model comes from: one record of what the registry, its run and its files say."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

from dfm_mlflow.artifact.portable import obstacle_of
from dfm_mlflow.artifact.record import CATEGORY_RULES, DETECTOR, parse_record
from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.mlmodel import FLAVOR_NAME, declared_in, read_mlmodel
from dfm_mlflow.mlflow_plugin.model_uri import resolve
from dfm_mlflow.tracking.lineage import PARENT, UPDATE

_OF_FLAVOR = (
    "backbone",
    "layers",
    "image_size",
    "classes",
    "score",
    "format_version",
    "category_rule",
    "dfm_mlflow_version",
    "sha256",
)


def describe(uri: str) -> dict[str, Any]:
    """Gather the lineage of a model."""
    client = MlflowClient()
    resolved = resolve(uri)
    version = resolved.version
    model, weights, export = _files(resolved.where)
    run_id = (version and version.run_id) or model.run_id
    promotion = _by_alias(version, "promotion")
    return {
        "uri": uri,
        "name": version and version.name,
        "version": version and str(version.version),
        "aliases": sorted(version.aliases) if version else [],
        "stage": version.current_stage if version and version.current_stage != "None" else None,
        "model_id": model.model_id,
        "created": model.utc_time_created,
        "description": (version and version.description) or None,
        **_of_run(client, run_id),
        "weights": weights,
        "export": export,
        "dfm": _of_flavor(model.flavors[FLAVOR_NAME]),
        "calibration": (model.metadata or {}).get("calibration"),
        "recalibrated_from": (model.metadata or {}).get("recalibrated_from"),
        "updated_from": (version.tags if version else {}).get(PARENT),
        "update": _of_update(version),
        "promotion": promotion,
        "rollback": _by_alias(version, "rollback"),
        "previous": {
            alias: texts["previous"]
            for alias, texts in promotion.items()
            if texts.get("previous", "none") != "none"
        },
    }


def _of_update(version: ModelVersion | None) -> dict[str, str]:
    """What people said, of a version that was made from verdicts."""
    tags = version.tags if version else {}
    return {k.removeprefix(UPDATE): v for k, v in sorted(tags.items()) if k.startswith(UPDATE)}


def _of_flavor(said: dict[str, Any]) -> dict[str, Any]:
    known = {"category_rule": CATEGORY_RULES[1]} | said  # format 1 does not name its rule
    return {key: known[key] for key in _OF_FLAVOR if key in known}


def _files(uri: str) -> tuple[Model, dict[str, str] | None, str | None]:
    """Read the two small files that say what a model is; the tensors stay where they are.

    Gives the model, its weights, and whether it can be exported, in words.
    """
    if Path(uri).is_dir():
        read_mlmodel(Path(uri))  # MLflow would wait for a pipe
    try:
        model = Model.load(uri)
    except Exception as error:  # MLflow takes what the file says as it is
        why = (str(error).splitlines() or [""])[0]
        raise ArtifactError(f"{uri} holds no model that can be read ({why}).") from None
    data = declared_in(uri, model.flavors).folder.name
    with tempfile.TemporaryDirectory() as folder:
        inside = f"{uri.rstrip('/')}/{data}/{DETECTOR}"
        try:
            path = inside if Path(inside).is_file() else _compat.download(inside, folder)
            text = Path(path).read_bytes()
            weights = json.loads(text)["weights"]
        except (MlflowException, OSError, ValueError, KeyError, TypeError):
            return model, None, None
    try:
        against = obstacle_of(parse_record(text))
    except ArtifactError:
        return model, weights, None
    return model, weights, f"not as it is: {against}" if against else "to ONNX"


def _of_run(client: MlflowClient, run_id: str | None) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "run": None,
        "experiment": None,
        "dataset": None,
        "git_commit": None,
        "metrics": {},
    }
    if not run_id:
        return nothing
    nothing["run"] = {"id": run_id, "name": None}
    try:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id)
    except MlflowException:  # a copied model knows its run's id, wherever the run may be
        return nothing
    used = [d.dataset for d in run.inputs.dataset_inputs] if run.inputs else []
    return {
        "run": {"id": run_id, "name": run.info.run_name},
        "experiment": {"id": experiment.experiment_id, "name": experiment.name},
        "dataset": {"name": used[0].name, "digest": used[0].digest} if used else None,
        "git_commit": run.data.tags.get("dfm.git_commit"),
        "metrics": {
            name: value
            for name, value in sorted(run.data.metrics.items())
            if not name.startswith("curve/")  # the last step of a curve says nothing
        },
    }


def _by_alias(version: ModelVersion | None, verb: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, text in sorted((version.tags if version else {}).items()):
        match = re.fullmatch(rf"dfm\.{verb}\.([\w-]+)\.(\w+)", key)
        if match:
            alias, name = match.groups()
            try:
                found.setdefault(alias, {})[name] = json.loads(text) if name == "figures" else text
            except ValueError:
                found[alias][name] = text
    return found


def as_text(found: dict[str, Any]) -> str:
    """Write `found`, the record of :func:`describe`, for people, one fact a line."""
    title = found["uri"] if found["name"] is None else f"{found['name']} {found['version']}"
    facts = {
        "aliases": ", ".join(found["aliases"]) or None,
        "stage": found["stage"],
        "created": found["created"],
        "run": _joined(found["run"], "{name} ({id})"),
        "experiment": _joined(found["experiment"], "{name} ({id})"),
        "dataset": _joined(found["dataset"], "{name}, digest {digest}"),
        "git commit": found["git_commit"],
        "weights": _joined(found["weights"], "{id}, SHA-256 {sha256}"),
        **{name.replace("_", " "): _text(value) for name, value in found["dfm"].items()},
        "calibration": found["calibration"],
        "exports": found["export"],
        "recalibrated from": found["recalibrated_from"],
        "updated from": found["updated_from"] and _parent(found["updated_from"]),
    }
    lines = [title]
    if found["description"]:
        lines.append(f"  {found['description']}")
    lines += [f"  {name:20s} {value}" for name, value in facts.items() if value]
    for heading, values in (
        ("update", found["update"]),
        ("metrics", found["metrics"]),
        *_headed(found, "promotion"),
        *_headed(found, "rollback"),
    ):
        if values:
            lines += [heading, *(f"  {name:28s} {_text(v)}" for name, v in values.items())]
    return "\n".join(lines)


def _parent(tag: str) -> str:
    return f"version {tag}" if tag.isdecimal() else tag


def _headed(found: dict[str, Any], verb: str) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{verb}, {alias}", texts) for alias, texts in found[verb].items()]


def _joined(values: dict[str, Any] | None, pattern: str) -> str | None:
    shown = {key: value or "none" for key, value in (values or {}).items()}
    return pattern.format(**shown) if values else None


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(v)}" for key, v in value.items())
    return str(value)
