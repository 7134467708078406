"""What a version must pass before an alias points to it."""

import statistics
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.core.comparison import NOT_WORSE, WORSE, Comparison, compare_auroc
from dfm_mlflow.core.metrics import auroc
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import DfmError, PromotionError
from dfm_mlflow.mlflow_plugin.flavor import load_model
from dfm_mlflow.registry.golden import deviation, load_golden

_PICKLES = {".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth", ".ckpt"}
_ROUNDS, _LEAST_ROUNDS, _SECONDS = 15, 5, 10.0  # of timing: up to 15 rounds while 10 s last


@dataclass(frozen=True)
class Gate:
    """What one gate found.

    Attributes
    ----------
    name : str
    passed : bool
    sentence : str
        Why, for people.
    figures : dict of str to float
        Why, for scripts.
    may_be_forced : bool
        A model that is broken or unsafe is not promoted for any reason.
    """

    name: str
    passed: bool
    sentence: str
    figures: dict[str, float] = field(default_factory=dict)
    may_be_forced: bool = True


@dataclass(frozen=True)
class Candidate:
    """A version with its detector in memory.

    Attributes
    ----------
    version : ModelVersion
    detector : AnomalyDetector
    n_bytes : int
        Of all files of the model.
    metrics : dict of str to float
        Of the run that made it; empty where it is unknown.
    """

    version: ModelVersion
    detector: AnomalyDetector
    n_bytes: int
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        """The version in words."""
        return f"version {self.version.version}"


def load_candidate(client: MlflowClient, version: ModelVersion) -> Candidate:
    """Load a version through the flavor, every hash checked, if it holds neither pickle nor code.

    Parameters
    ----------
    client : MlflowClient
    version : ModelVersion

    Returns
    -------
    Candidate

    Raises
    ------
    PromotionError
        If it holds what it must not, or does not load.
    """
    name = f"Version {version.version} of {version.name}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            uri = f"models:/{version.name}/{version.version}"
            root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
            found = unsafe_files(root)
            if found:
                raise PromotionError(
                    f"{name} holds {', '.join(found)}: a model of this flavor has neither pickle "
                    "nor code; log it anew with dfm_mlflow.log_model."
                )
            n_bytes = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
            detector = load_model(str(root))
        except PromotionError:
            raise
        except (DfmError, MlflowException, OSError) as error:
            raise PromotionError(f"{name} does not load: {error}") from None
    try:
        metrics = dict(client.get_run(version.run_id).data.metrics) if version.run_id else {}
    except MlflowException:
        metrics = {}
    return Candidate(version, detector, n_bytes, metrics)


def unsafe_files(root: Path) -> list[str]:
    """List what of `root`, a model's folder, could run as code when somebody loads it."""
    found = [
        f"{f.relative_to(root)} (pickle)"
        for f in sorted(root.rglob("*"))
        if f.is_file() and _is_pickle(f)
    ]
    generic = Model.load(str(root)).flavors.get("python_function", {})
    if (root / "code").exists() or "code" in generic:
        found.append("code/")
    if generic.get("loader_module", "dfm_mlflow") != "dfm_mlflow":
        found.append(f"the loader {generic['loader_module']} in MLmodel")
    return found


def _is_pickle(path: Path) -> bool:
    if path.suffix in _PICKLES:
        return True
    with path.open("rb") as file:
        start = file.read(9)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return start[8:] != b"{"  # the length of a safetensors header can look like that
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(Path(n).suffix in _PICKLES for n in archive.namelist())
    return False


def golden_gate(candidate: Candidate) -> Gate:
    """Check that golden pictures score under a `candidate` here as they did in training.

    A run without golden pictures does not pass either.
    """
    run_id = candidate.version.run_id
    try:
        if not run_id:
            raise PromotionError(
                f"{candidate.name.capitalize()} names no run, so it has no golden pictures: "
                "register a model that was trained with this version of dfm-mlflow."
            )
        golden = load_golden(run_id)
        largest, tolerance = deviation(candidate.detector, golden)
    except DfmError as error:
        return Gate("golden", False, str(error), may_be_forced=False)
    figures = {"golden_deviation": largest, "golden_tolerance": tolerance, "n_golden": len(golden)}
    if largest <= tolerance:
        sentence = f"{len(golden)} golden pictures score as in training, to {largest:.1g}."
    else:
        sentence = (
            f"Golden pictures score otherwise than in training, by up to {largest:.2g} of the "
            f"score where {tolerance:.0e} is accepted: the model or this environment is not what "
            "it was; compare the versions in the model's requirements with those installed."
        )
    return Gate("golden", largest <= tolerance, sentence, figures, may_be_forced=False)


def metrics_gate(candidate: Candidate, options: PromoteOptions, scored: pd.DataFrame) -> Gate:
    """Hold the AUROC against the minimum; without test pictures the promise on good ones.

    Parameters
    ----------
    candidate : Candidate
    options : PromoteOptions
    scored : DataFrame
        ``defective``, ``category`` and ``challenger`` of the pictures that the user named for this;
        none where the run's own metrics are to be used.

    Returns
    -------
    Gate
    """
    area, source = _area(scored), "the given pictures"
    if area is None:
        area, source = candidate.metrics.get("image_auroc"), "its own test pictures"
    if area is not None:
        passed = area >= options.min_auroc
        sentence = (
            f"AUROC {area:.3f} on {source} {'reaches' if passed else 'is below'} "
            f"min_auroc={options.min_auroc:g}"
            f"{'' if passed else ': train a better model, or accept a lower one'}."
        )
        return Gate("metrics", passed, sentence, {"image_auroc": float(area)})
    if "threshold" not in candidate.metrics:
        return Gate(
            "metrics",
            False,
            f"The run of {candidate.name} has no metrics: train the model with "
            "dfm-mlflow, or give data=<folder with test pictures>.",
        )
    promised = candidate.detector.effective_fpr()
    passed = promised <= options.max_fpr
    n = min(len(c.calibration.scores) for c in candidate.detector.classes)
    sentence = (
        f"No test pictures; {n} held-out good ones promise a false-positive rate of at most "
        f"{promised:.3g}, {'within' if passed else 'above'} max_fpr={options.max_fpr:g}"
        f"{'' if passed else ': train on more good pictures, or with a smaller fpr'}."
    )
    return Gate("metrics", passed, sentence, {"effective_fpr": promised})


def _area(scored: pd.DataFrame) -> float | None:
    """Mean over categories of the AUROC; None where none has good and defective pictures."""
    areas = [
        auroc(rows["defective"].to_numpy(bool), rows["challenger"].to_numpy(float))
        for _, rows in scored.groupby("category")
    ]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None


def comparison_gate(
    challenger: Candidate, champion: Candidate, options: PromoteOptions, scored: pd.DataFrame
) -> Gate:
    """Refuse a challenger that ranks the same test pictures worse than the champion.

    Parameters
    ----------
    challenger, champion : Candidate
    options : PromoteOptions
    scored : DataFrame
        ``defective``, ``category``, ``challenger``, ``champion``: one row a picture.

    Returns
    -------
    Gate
    """
    defective = scored["defective"].to_numpy(bool)
    n_defective = int(defective.sum())
    n_good = len(defective) - n_defective
    if not scored.groupby("category")["defective"].nunique().eq(2).any():
        # a version whose quality was measured is not replaced by one whose quality is unknown
        known = "image_auroc" in champion.metrics
        remedy = "give data=<folder with good and defective test pictures>"
        return Gate(
            "comparison",
            not known,
            f"{n_good} good and {n_defective} defective test pictures compare nothing, and "
            f"{champion.name} was {f'tested on both: {remedy}' if known else 'not tested either'}.",
        )
    found = compare_auroc(
        defective,
        scored["challenger"].to_numpy(float),
        scored["champion"].to_numpy(float),
        strata=scored["category"].tolist(),
    )
    figures = {
        "challenger_image_auroc": found.challenger,
        "champion_image_auroc": found.champion,
        "auroc_difference": found.difference,
        "auroc_difference_lower": found.lower,
        "auroc_difference_upper": found.upper,
        "n_good": found.n_good,
        "n_defective": found.n_defective,
    }
    verdict = found.verdict(options.margin, options.min_images)
    sentence = _comparison_sentence(found, verdict, challenger.name, champion.name, options)
    return Gate("comparison", verdict == NOT_WORSE, sentence, figures)


def _comparison_sentence(
    found: Comparison, verdict: str, challenger: str, champion: str, options: PromoteOptions
) -> str:
    pictures = f"{found.n_good} good and {found.n_defective} defective pictures"
    areas = (
        f"AUROC {found.challenger:.3f} against {found.champion:.3f}, a difference between "
        f"{found.lower:+.3f} and {found.upper:+.3f} (each bound at {found.confidence:.0%})"
    )
    if verdict == NOT_WORSE:
        return f"{challenger.capitalize()} is not worse than {champion} on {pictures}: {areas}."
    if verdict == WORSE:
        return (
            f"{challenger.capitalize()} is worse than {champion} on {pictures}: {areas}, all of it "
            f"beyond margin={options.margin:g}; keep {champion} or train a better one."
        )
    least = options.min_images
    why = (
        f"at least {least} of each are needed"
        if min(found.n_good, found.n_defective) < least
        else f"{areas}, and margin={options.margin:g} lies within"
    )
    return (
        f"Too few images to decide whether {challenger} is worse than {champion}: {pictures}; "
        f"{why}: add test pictures, or accept a larger margin."
    )


def cost_gates(
    challenger: Candidate, champion: Candidate, options: PromoteOptions, images: Sequence[bytes]
) -> list[Gate]:
    """Refuse a challenger that is much slower, or much larger, than the champion.

    Parameters
    ----------
    challenger, champion : Candidate
    options : PromoteOptions
    images : sequence of bytes
        Encoded pictures to time both on.

    Returns
    -------
    list of Gate
        Of speed and of size.
    """
    slowdown, new, old = compare_speed(challenger.detector, champion.detector, images)
    growth = challenger.n_bytes / champion.n_bytes
    fast, small = slowdown <= options.max_slowdown, growth <= options.max_growth
    speed = (
        f"A picture takes {slowdown:.2f} times as long as with {champion.name} ({new:.3g} against "
        f"{old:.3g} pictures/s), {'within' if fast else 'above'} "
        f"max_slowdown={options.max_slowdown:g}"
        f"{'' if fast else ': take a smaller backbone or input, or raise the limit'}."
    )
    size = (
        f"The model has {growth:.2f} times the bytes of {champion.name} "
        f"({challenger.n_bytes / 1e6:.3g} against {champion.n_bytes / 1e6:.3g} MB), "
        f"{'within' if small else 'above'} max_growth={options.max_growth:g}"
        f"{'' if small else ': take a smaller backbone, or raise the limit'}."
    )
    rates = {"slowdown": slowdown, "images_per_second": new, "champion_images_per_second": old}
    return [Gate("speed", fast, speed, rates), Gate("size", small, size, {"growth": growth})]


def compare_speed(
    challenger: AnomalyDetector, champion: AnomalyDetector, images: Sequence[bytes]
) -> tuple[float, float, float]:
    """Time two detectors by turns on the same pictures.

    Parameters
    ----------
    challenger, champion : AnomalyDetector
    images : sequence of bytes
        Encoded pictures.

    Returns
    -------
    slowdown : float
        Median over rounds of the ratio of their times, or the ratio of their median times: the
        smaller one, since a load that changes within rounds fools the first, and one that changes
        between them the second.
    challenger, champion : float
        Images per second, of the median time.
    """
    times: tuple[list[float], list[float]] = ([], [])
    pair = (challenger, champion)
    for detector in pair:  # the first call pays for what later ones do not
        detector.score(images)
    began = time.perf_counter()
    while len(times[0]) < _LEAST_ROUNDS or (
        len(times[0]) < _ROUNDS and time.perf_counter() - began < _SECONDS
    ):
        for turn in (0, 1) if len(times[0]) % 2 else (1, 0):
            start = time.perf_counter()
            pair[turn].score(images)
            times[turn].append(time.perf_counter() - start)
    paired = statistics.median(a / b for a, b in zip(*times, strict=True))
    new, old = (statistics.median(t) for t in times)
    return min(paired, new / old), len(images) / new, len(images) / old
