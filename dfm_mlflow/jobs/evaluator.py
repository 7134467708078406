"""``mlflow.models.evaluate(..., model_type="dfm")``: the numbers of the job ``evaluate``.

A door like ``cli.py``: MLflow calls it, and it calls the job. MLflow imports this module whenever
it is imported itself (entry point ``mlflow.model_evaluator``), so that what is heavy waits.
"""

import inspect
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.models.evaluation.base import EvaluationMetric, EvaluationResult, ModelEvaluator

from dfm_mlflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.data.evaluation_dataset import EvaluationDataset

    from dfm_mlflow.data.catalog import Catalog
    from dfm_mlflow.data.item import Item
    from dfm_mlflow.detector.anomaly_detector import AnomalyDetector

MODEL_TYPE = "dfm"
_REMEDY = (
    "give a pandas DataFrame with the bytes of pictures in a column 'image', or "
    "mlflow.data.from_image_folder(...)"
)

_logger = logging.getLogger(__name__)


class DfmEvaluator(ModelEvaluator):
    """Evaluator of models of the flavor ``dfm``; MLflow knows it as ``dfm``."""

    @classmethod
    def can_evaluate(
        cls, *, model_type: str | None, evaluator_config: Mapping[str, Any] | None, **kwargs: Any
    ) -> bool:
        """Whether this kind of model may be one of the flavor; MLflow does not show the model."""
        return model_type in (MODEL_TYPE, None)

    def evaluate(
        self,
        *,
        model_type: str | None,
        dataset: "EvaluationDataset",
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        extra_metrics: Sequence[EvaluationMetric] | None = None,
        custom_artifacts: Sequence[Any] | None = None,
        predictions: str | None = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult | None:
        """Score the pictures of a dataset; log metrics, the report and ``scores.parquet``."""
        detector = _detector_of(model, asked=model_type == MODEL_TYPE)
        if detector is None:
            return None
        if custom_artifacts:
            raise ConfigError(
                "The evaluator dfm has no custom_artifacts: log your own with mlflow.log_artifact "
                "in the same run."
            )
        import mlflow

        from dfm_mlflow.data.masks import check_masks
        from dfm_mlflow.mlflow_plugin.dataset import ImageFolderEvaluationDataset
        from dfm_mlflow.scores.measure import measure
        from dfm_mlflow.scores.operating_points import costs_of
        from dfm_mlflow.scores.verdict import say
        from dfm_mlflow.tracking.run import log_results

        folder = dataset.pictures if isinstance(dataset, ImageFolderEvaluationDataset) else None
        labelled = dataset.has_targets
        with _catalog_of(dataset, detector) as (catalog, items):
            items = check_masks(items, detector.options.max_pixels)
            found = measure(detector, items, labelled)
            table, metrics, sentences = found.evaluation.table, found.metrics, found.sentences
            if extra_metrics:
                metrics |= _extra(
                    extra_metrics,
                    table,
                    predictions or "anomaly_score",
                    metrics,
                    labelled,
                    evaluator_config or {},
                )
            for sentence in sentences:
                _logger.info(sentence)
            say(_logger, found.verdict, found.points, costs_of(detector.options))
            mlflow.set_tag("calibration", " ".join(sentences))
            log_results(detector, catalog, found.evaluation, metrics, sentences, found.verdict)
        if model_id is None:  # an alias or a path does not tell MLflow which model it is
            mlflow.log_metrics(metrics, model_id=model.metadata.model_id, dataset=folder)
        return EvaluationResult(metrics, _artifacts(table), run_id)


def _detector_of(model: Any, asked: bool) -> "AnomalyDetector | None":
    """Give the detector of a model, or None where it is not one of the flavor.

    MLflow tries every evaluator where the user named none, and then another flavor is no error.
    """
    flavors = getattr(getattr(model, "metadata", None), "flavors", {})
    if "dfm" in flavors:
        try:
            detector: AnomalyDetector = model.get_raw_model()
            return detector
        except (AttributeError, NotImplementedError):
            raise ConfigError(
                "The evaluator dfm needs the model in its own process: leave env_manager out."
            ) from None
    what = f"a model of the flavors {', '.join(flavors)}" if flavors else "no MLflow model"
    if asked:
        raise ConfigError(
            f"model_type={MODEL_TYPE} was given with {what}: give the URI of a dfm model."
        )
    _logger.info("The evaluator dfm leaves out %s: it knows only models of its flavor.", what)
    return None


@contextmanager
def _catalog_of(
    dataset: "EvaluationDataset", detector: "AnomalyDetector"
) -> "Iterator[tuple[Catalog, list[Item]]]":
    """Give the pictures to score as items; those of a table are files for this while."""
    import pandas as pd

    from dfm_mlflow.data.catalog import Catalog
    from dfm_mlflow.mlflow_plugin.dataset import ImageFolderEvaluationDataset

    if isinstance(dataset, ImageFolderEvaluationDataset):
        yield dataset.pictures.catalog, dataset.pictures.to_score
        return
    table = dataset.features_data
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"The data are an array of shape {table.shape}: {_REMEDY}.")
    if "image" not in table.columns:
        columns = ", ".join(map(str, table.columns)) or "none at all"
        raise DataError(f"The data have no column 'image', but {columns}: {_REMEDY}.")
    if table.empty:
        raise DataError(f"The data have no rows: {_REMEDY}.")
    labels = _labels(dataset.labels_data) if dataset.has_targets else ["good"] * len(table)
    with tempfile.TemporaryDirectory() as name:
        items = _written(table, labels, detector.class_names, Path(name))
        categories = ",".join(dict.fromkeys(item.category for item in items))
        yield Catalog(categories, f"{len(table)} rows of a table", tuple(items)), items


def _written(
    table: "pd.DataFrame", labels: Sequence[str], classes: Sequence[str], folder: Path
) -> "list[Item]":
    """Write the pictures of a table into ``<label>/<row>``, where the report finds them."""
    from dfm_mlflow.data.item import Item, Mask
    from dfm_mlflow.errors import ImageError
    from dfm_mlflow.images.picture import encoded
    from dfm_mlflow.scores.evaluation import metric_name
    from dfm_mlflow.serving.inputs import to_picture

    def written(value: Any, kind: str, i: int) -> Path:
        path = folder / kind / metric_name(labels[i]) / f"{i:05d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = to_picture(value, files=True)
        if isinstance(picture, Path):
            return picture
        try:  # a row without a picture is counted among those that cannot be read
            path.write_bytes(b"" if picture is None else encoded(picture))
        except ImageError as error:
            raise DataError(f"Row {i} of the data: {error}") from None
        return path

    n = len(table)
    categories = table["category"] if "category" in table else [",".join(classes)] * n
    masks = table["mask"] if "mask" in table else [None] * n
    return [
        Item(
            path=written(image, "images", i),
            category=str(category),
            split="test",
            label=labels[i],
            mask=Mask((written(mask, "masks", i),)) if isinstance(mask, bytes | str) else None,
        )
        for i, (image, category, mask) in enumerate(
            zip(table["image"], categories, masks, strict=True)
        )
    ]


def _labels(values: Sequence[Any]) -> list[str]:
    """Bring targets to labels: names stay, and what says defective or not becomes one of two."""
    from dfm_mlflow.data.names import label_of, may_be_either

    words = {0: "good", 1: "defective"}  # False and True, and 0.0 and 1.0, are the same keys
    beside = {value.strip() for value in values if isinstance(value, str)}
    labels = []
    for i, value in enumerate(values):
        text = value.strip() if isinstance(value, str) else ""
        # "0" may be meant as a number; alone, it would be taken for the name of a defect
        if text and not text.isdigit() and text.lower() not in ("true", "false", "nan", "none"):
            if may_be_either(text, beside):
                raise DataError(
                    f"The label {text!r} of row {i} may mean good or defective: give 'good' or the "
                    "name of a defect."
                )
            labels.append(label_of(text, beside))
        elif text in ("0", "1") and {"0", "1"} <= beside:
            labels.append(words[int(text)])
        elif not isinstance(value, str) and value in (0, 1):
            labels.append(words[int(value)])
        else:
            raise DataError(
                f"The label {value!r} of row {i} says nothing: give 'good' or the name of a "
                "defect, or a boolean that is true for defective pictures."
            )
    return labels


def _extra(
    extra_metrics: Sequence[EvaluationMetric],
    table: "pd.DataFrame",
    column: str,
    found: Mapping[str, float],
    labelled: bool,
    config: Mapping[str, Any],
) -> dict[str, float]:
    """Compute the user's own metrics on the pictures that could be read, as MLflow names them."""
    import pandas as pd
    from mlflow.metrics import MetricValue

    if column not in table:
        raise ConfigError(
            f"predictions={column} is not a column of the model's output: give one of "
            f"{', '.join(table.columns)}."
        )
    read = table[table["error"].isna()].reset_index(drop=True)
    given: dict[str, Any] = {**config, "predictions": read[column]}
    given["metrics"] = {name: MetricValue(aggregate_results={name: v}) for name, v in found.items()}
    pair = {"prediction": read[column]}
    if labelled:
        given["targets"] = pair["target"] = read["defective"].astype(int)
    named: dict[str, float] = {}
    for metric in extra_metrics:
        parameters = inspect.signature(metric.eval_fn).parameters
        if len(parameters) == 2 and not {"predictions", "targets"} & set(parameters):
            value = metric.eval_fn(pd.DataFrame(pair), dict(found))  # MLflow's older form
        else:
            value = metric.eval_fn(**_arguments(metric, parameters, given))
        if not isinstance(value, MetricValue):
            value = MetricValue(aggregate_results={metric.name: value})
        named |= _named(metric, value.aggregate_results or {})
    return named


def _arguments(
    metric: EvaluationMetric, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a metric of the user asks for, of what is given."""
    missing = [k for k, p in parameters.items() if k not in given and p.default is p.empty]
    if missing:
        raise ConfigError(
            f"The extra metric {metric.name} asks for {', '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not there: give targets, or values in "
            "evaluator_config."
        )
    return {k: given[k] for k in parameters if k in given}


def _named(metric: EvaluationMetric, results: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a metric under the names that MLflow gives them."""
    full = f"{metric.name}/{metric.version}" if metric.version else metric.name
    return {
        full if name == metric.name else f"{full}/{name}": float(number)
        for name, number in results.items()
        if number is not None
    }


def _artifacts(table: "pd.DataFrame") -> dict[str, Any]:
    import mlflow
    from mlflow.models.evaluation.artifacts import ParquetEvaluationArtifact, TextEvaluationArtifact

    report = TextEvaluationArtifact(mlflow.get_artifact_uri("report/report.html"))
    scores = ParquetEvaluationArtifact(mlflow.get_artifact_uri("scores.parquet"), table)
    return {"report": report, "scores": scores}
