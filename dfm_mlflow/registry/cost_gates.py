"""What a version may cost beside the one that it replaces: time and bytes."""

import statistics
import time
from collections.abc import Sequence

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.registry.candidate import Candidate
from dfm_mlflow.registry.gates import Gate

_ROUNDS, _LEAST_ROUNDS, _SECONDS = 15, 5, 10.0  # of timing: up to 15 rounds while 10 s last


def cost_gates(
    challenger: Candidate, champion: Candidate, options: PromoteOptions, images: Sequence[bytes]
) -> list[Gate]:
    """Refuse a challenger that is much slower, or much larger, than the champion."""
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
    """Time two detectors by turns on the same pictures."""
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
