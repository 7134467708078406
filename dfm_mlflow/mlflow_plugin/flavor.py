"""The MLflow flavor ``dfm``: save, log and load, after MLflow's own conventions."""

import sys
from pathlib import Path
from typing import Any

import yaml
from mlflow import pyfunc
from mlflow.models import Model, ModelInputExample, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import dfm_mlflow
from dfm_mlflow.artifact.record import CATEGORY_RULES, FORMAT
from dfm_mlflow.artifact.save_load import load_detector, save_detector
from dfm_mlflow.columns import columns_of
from dfm_mlflow.config import Options
from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.mlmodel import FLAVOR_NAME as FLAVOR_NAME
from dfm_mlflow.mlflow_plugin.mlmodel import read_mlmodel
from dfm_mlflow.mlflow_plugin.wheel import build_wheel, is_release
from dfm_mlflow.network.backbones import backbone_requirements

DATA = "dfm"
WHEELS = "wheels"
# MLflow lets a user override only the keys that a model was saved with.
MODEL_CONFIG: dict[str, Any] = ServingSettings().model_dump()
_THIRD_PARTY = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pillow",
    "imagecodecs",
    "simplejpeg",
    "pydantic",
    "safetensors",
    "array-api-compat",
    "tqdm",
)


def get_default_pip_requirements(backbone: str | None = None) -> list[str]:
    """List the pinned requirements of a model of this flavor.

    Parameters
    ----------
    backbone : str, optional
        Adds what defines its architecture, where that is not torchvision.
    """
    names = [*_THIRD_PARTY, *backbone_requirements(backbone or "")]
    return [*map(_compat.pinned, names), f"dfm-mlflow=={dfm_mlflow.__version__}"]


def get_default_conda_env(backbone: str | None = None) -> dict[str, Any]:
    """Conda environment with :func:`get_default_pip_requirements`.

    Parameters
    ----------
    backbone : str, optional
        As :func:`get_default_pip_requirements` takes it.

    Returns
    -------
    dict
    """
    return _compat.conda_env_of(additional_pip_deps=get_default_pip_requirements(backbone))


def signature_of(options: Options) -> ModelSignature:
    """Describe the columns and parameters of scoring with a model of these `options`."""
    columns = columns_of(options.retest_rate is not None)
    kinds = {"float64": DataType.double, "boolean": DataType.boolean, "object": DataType.string}
    # a row of a picture that cannot be scored has nulls
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(kinds[kind], name, required=False) for name, kind in columns.items()
    ]
    params = [
        ParamSpec("fpr", DataType.double, options.fpr),
        ParamSpec("anomaly_map", DataType.boolean, False),
        ParamSpec("on_error", DataType.string, "raise"),
        ParamSpec("category", DataType.string, "auto"),
    ]
    return ModelSignature(
        Schema([ColSpec(DataType.binary, "image")]), Schema(outputs), ParamSchema(params)
    )


def save_model(
    dfm_model: AnomalyDetector,
    path: str | Path,
    conda_env: dict[str, Any] | str | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: ModelInputExample | None = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    extra_files: list[str] | None = None,
    model_config: dict[str, Any] | None = None,
    validate_serving_input: bool = True,
) -> None:
    """Save a detector as an MLflow model in a local folder.

    Parameters
    ----------
    dfm_model : AnomalyDetector
        A fitted detector.
    path : str or Path
        A folder that does not exist or is empty.
    conda_env, pip_requirements, extra_pip_requirements
        As MLflow's built-in flavors take them. The package itself is always added to
        `pip_requirements`: by name and version when it was installed from an index, else as a wheel
        in the model's ``wheels/``. A `conda_env` is taken as it is.
    mlflow_model : mlflow.models.Model, optional
        The model that the flavor is added to.
    signature : ModelSignature, optional
        By default binary column ``image`` in; the columns of :meth:`AnomalyDetector.score` out.
    input_example, metadata, extra_files
        As MLflow's built-in flavors take them.
    model_config : dict, optional
        Overrides keys of :class:`~dfm_mlflow.config.serving.ServingSettings`: ``device``,
        ``precision``, ``batch_size``, ``max_wait_ms``, ``queue_size``, ``threads``.
    validate_serving_input : bool
        For MLflow's ``Model.log``, which passes it on: whether to load the model again and score
        its example as a server would. Nothing here.

    Raises
    ------
    ArtifactError
        For a key of `model_config` that does not exist, or a folder that cannot be written.
    ConfigError
        For a value that such a key cannot have.
    MlflowException
        If `path` exists and is not empty, or an argument is refused by MLflow.
    """
    _compat.validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    unknown = set(model_config or {}) - set(MODEL_CONFIG)
    if unknown:
        raise ArtifactError(
            f"model_config has no {', '.join(sorted(unknown))}: it has {', '.join(MODEL_CONFIG)}."
        )
    ServingSettings.parse(model_config)
    root = Path(path).absolute()
    _compat.prepare_target(str(root))
    model = Model() if mlflow_model is None else mlflow_model
    model.signature = signature or signature_of(dfm_model.options)
    _compat.save_example(model, input_example, str(root))
    if metadata is not None:
        model.metadata = metadata
    digest = save_detector(dfm_model, root / DATA)
    pyfunc.add_to_model(
        model,
        loader_module="dfm_mlflow",
        data=DATA,
        conda_env=_compat.CONDA_FILE,
        python_env=_compat.PYTHON_FILE,
        model_config={**MODEL_CONFIG, **(model_config or {})},
    )
    options = dfm_model.options
    model.add_flavor(
        FLAVOR_NAME,
        format_version=FORMAT,
        category_rule=CATEGORY_RULES[dfm_model.rule],
        dfm_mlflow_version=dfm_mlflow.__version__,
        data=DATA,
        backbone=options.backbone,
        layers=list(dfm_model.extractor.backbone.layers),
        image_size=list(options.size),
        classes=list(dfm_model.class_names),
        score=options.score,
        sha256=digest,
        **_compat.copy_extra_files(extra_files, str(root)),
    )
    _write_environment(root, options.backbone, conda_env, pip_requirements, extra_pip_requirements)
    model.model_size_bytes = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
    model.save(str(root / MLMODEL_FILE_NAME))


def _write_environment(
    root: Path, backbone: str, conda_env: Any, pip_requirements: Any, extra: Any
) -> None:
    if conda_env is not None:
        conda, requirements, constraints = _compat.process_conda_env(conda_env)
    else:
        itself = f"dfm-mlflow=={dfm_mlflow.__version__}"
        if not is_release():
            itself = f"{WHEELS}/{build_wheel(root / WHEELS)}"
        *third_party, _ = get_default_pip_requirements(backbone)
        conda, requirements, constraints = _compat.process_pip_requirements(
            third_party, pip_requirements, extra
        )
        requirements.append(itself)
        conda["dependencies"][-1]["pip"].append(itself)
    (root / _compat.CONDA_FILE).write_text(yaml.safe_dump(conda))
    if constraints:
        (root / _compat.CONSTRAINTS_FILE).write_text("\n".join(constraints))
    (root / _compat.REQUIREMENTS_FILE).write_text("\n".join(requirements))
    _compat.PythonEnv.current().to_yaml(str(root / _compat.PYTHON_FILE))


def log_model(
    dfm_model: AnomalyDetector,
    artifact_path: str | None = None,
    *,
    name: str | None = None,
    registered_model_name: str | None = None,
    tags: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ModelInfo:
    """Log a detector to the active run, and register it where a name is given.

    Parameters
    ----------
    dfm_model : AnomalyDetector
        A fitted detector.
    artifact_path : str, optional
        Deprecated by MLflow; use `name`.
    name : str, optional
        Name of the logged model.
    registered_model_name : str, optional
        Register a new version under this name.
    tags, params : dict, optional
        Of the logged model.
    **kwargs
        Of :func:`save_model` (``signature``, ``input_example``, ``metadata``,
        ``pip_requirements``, ``model_config``, ...) and of ``mlflow.models.Model.log``.

    Returns
    -------
    mlflow.models.model.ModelInfo
    """
    info: ModelInfo = Model.log(
        artifact_path=artifact_path,
        name=name,
        flavor=sys.modules[__name__],
        registered_model_name=registered_model_name,
        dfm_model=dfm_model,
        tags=tags,
        params=params,
        **kwargs,
    )
    return info


def load_model(
    model_uri: str,
    dst_path: str | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    batch_size: int = 16,
) -> AnomalyDetector:
    """Load a detector from any MLflow model URI.

    Parameters
    ----------
    model_uri : str
        ``models:/name/version``, ``models:/name@alias``, ``runs:/...`` or a path.
    dst_path : str, optional
        Folder to download to.
    device : str, optional
        ``cpu``, ``cuda`` or ``cuda:N``.
    precision : str, optional
        Must be the one that the model was calibrated in.
    batch_size : int
        Pictures in one forward pass.

    Raises
    ------
    ArtifactError
        If the model is of another flavor, damaged, or of a newer format.
    DeviceError
        If the device is not there.
    """
    root = Path(_compat.download(artifact_uri=model_uri, output_path=dst_path))
    declared = read_mlmodel(root)
    return load_detector(
        declared.folder,
        expected_sha256=declared.sha256,
        device=device,
        precision=precision,
        batch_size=batch_size,
    )


def load_data_folder(path: str | Path, settings: ServingSettings) -> AnomalyDetector:
    """Load a detector from the folder of its files in a model, checked against the ``MLmodel``."""
    folder = Path(path)
    return load_detector(
        folder,
        expected_sha256=read_mlmodel(folder.parent).sha256,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
    )
