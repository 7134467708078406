"""The package timed for ``speed.py``; prints one line of JSON.

python benchmarks/speed_ours.py compare|scale|phases CATEGORY_DIR WEIGHTS [N | CATEGORY]
"""

import copy
import json
import os
import sys
import tempfile
import time

started = time.perf_counter()

import array_api_compat.numpy  # noqa: E402 - both load with the first fit
import array_api_compat.torch  # noqa: E402, F401
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402, F401 - loads with the first answer; the peer has all imported, too
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torchvision  # noqa: E402, F401 - loads with the first network
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from dfm_mlflow.config import Options  # noqa: E402
from dfm_mlflow.data.catalog import load_catalog  # noqa: E402
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector  # noqa: E402
from dfm_mlflow.images.decode import decode_image  # noqa: E402
from dfm_mlflow.network.builder import build_extractor  # noqa: E402
from dfm_mlflow.network.device import DTYPES  # noqa: E402

imported = time.perf_counter()


# The peer's method, and our default without copies.
SIDES = {
    "auto": {"precision": "auto"},
    "fp32": {"precision": "fp32"},
    "default": {"preset": "default", "augment": "none"},
}


def options(category: str, weights: str, **more: object) -> Options:
    folder, name = os.path.split(category.rstrip("/"))
    return Options(
        **{"category": name, "data": folder, "weights": weights, "backbone": "resnet18"},
        **{"preset": "anomalib"} | more,
    ).resolve()


def prepared(given: Options) -> tuple:
    catalog = load_catalog(given.data, given.categories)
    return catalog, *build_extractor(given, catalog.train)


def fit(given: Options, catalog, extractor, weights) -> AnomalyDetector:
    extraction = extractor.extract([i.path for i in catalog.train])
    labels = [catalog.train[i].category for i in extraction.kept]
    return AnomalyDetector.fit(given, extractor, extraction, labels, weights)


def clock(work) -> tuple:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def latency(detector: AnomalyDetector, catalog) -> float:
    pixels = decode_image(catalog.test[0].path.read_bytes())
    return float(np.median([clock(lambda: detector.score([pixels]))[1] for _ in range(80)][5:]))


def network(extractor) -> dict[str, float]:
    """Milliseconds a picture, counted GFLOP/s, and those of a matrix product of the same dtype.

    The product is taken by BLAS and by oneDNN, as a convolution of one pixel, and the better one
    counts: MKL is the slower one on AMD.
    """
    plain, (height, width) = copy.deepcopy(extractor.backbone.module), extractor.size
    device, n = extractor.device, 2048 if extractor.device.type == "cpu" else 8192
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        plain(torch.zeros(1, 3, height, width))
    pixels = torch.randint(0, 256, (16, 3, height, width), dtype=torch.uint8, device=device)
    a = torch.rand(n, n, device=device).to(DTYPES[extractor.precision])
    rows = torch.empty(1, n, 32, n // 32, dtype=a.dtype, device=device)
    rows = rows.to(memory_format=torch.channels_last).copy_(a.view(1, n, 32, -1))
    columns = a.view(n, n, 1, 1)

    def done(work):
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds, product = 1e9, 1e9
    with torch.inference_mode():
        for _ in range(8):
            seconds = min(seconds, clock(lambda: done(lambda: extractor.run_batch(pixels)))[1] / 16)
            product = min(product, clock(lambda: done(lambda: a @ a))[1])
            product = min(product, clock(lambda: done(lambda: F.conv2d(rows, columns)))[1])
    return {
        "ms": 1000 * seconds,
        "gflops": counter.get_total_flops() / seconds / 1e9,
        "peak": 2 * n**3 / product / 1e9,
    }


def compare(category: str, weights: str, *left_out: str) -> dict:
    found: dict = {"network": {}}
    for name, more in SIDES.items():
        if name in left_out:
            continue
        given = options(category, weights, cache=False, **more)
        # the choice of the precision is part of the work, as the calibration is
        start = time.perf_counter()
        catalog, extractor, about, given = prepared(given)
        detector = fit(given, catalog, extractor, about)
        found[f"fit_{name}"] = time.perf_counter() - start
        scores, found[f"score_{name}"] = clock(
            lambda d=detector, c=catalog: d.score([i.path for i in c.test])
        )
        if name == "auto":
            found |= {
                "precision": extractor.precision,
                "n_train": len(catalog.train),
                "n_test": len(scores),
            }
        found[f"latency_{name}"] = latency(detector, catalog)
        if name != "default":
            found["network"][extractor.precision] = network(extractor)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DFM_CACHE_HOME"] = folder
        given = options(category, weights)
        for _ in range(2):  # the second time the features are there
            start = time.perf_counter()
            catalog, extractor, about, resolved = prepared(given)
            fit(resolved, catalog, extractor, about).score([i.path for i in catalog.test])
            found["warm"] = time.perf_counter() - start
    return found


def scale(category: str, weights: str, n: str) -> dict:
    catalog, extractor, about, given = prepared(options(category, weights, cache=False))
    detector = fit(given, catalog, extractor, about)
    paths = [i.path for i in catalog.test]
    many = (paths * (int(n) // len(paths) + 1))[: int(n)]
    return {"seconds": clock(lambda: detector.score(many))[1]}


def phases(category: str, weights: str, name: str) -> dict:
    """Time the parts of a whole training run, each without the parts inside it."""
    table: dict[str, float] = {}
    inside = [0.0]

    def watch(owner: object, attribute: str, title: str) -> None:
        original = getattr(owner, attribute)

        def timed(*args, **kwargs):
            inside.append(0.0)
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - start
                table[title] = table.get(title, 0.0) + seconds - inside.pop()
                inside[-1] += seconds

        setattr(owner, attribute, timed)

    start = time.perf_counter()
    import mlflow

    from dfm_mlflow.jobs import train as job
    from dfm_mlflow.network import builder as networks
    from dfm_mlflow.network.extractor import Extractor
    from dfm_mlflow.tracking import run

    imports = imported - started + time.perf_counter() - start

    watch(Extractor, "extract", "network: decode, resize, forward, cache")
    watch(job, "load_catalog", "list and digest the pictures")
    watch(job, "build_extractor", "network: build")
    watch(networks, "precision_change", "network: half precision against fp32")
    watch(AnomalyDetector, "fit", "fit and calibrate")
    watch(job, "score_items", "score the test pictures beside the network")
    watch(job, "pixel_metrics_of", "pixel metrics")
    watch(job, "image_metrics", "image metrics")
    watch(job, "log_model", "MLflow: log the model")
    watch(job, "log_dataset", "MLflow: log the data set")
    watch(job, "log_parameters", "MLflow: parameters")
    watch(job, "log_golden", "golden pictures")
    watch(run, "write_report", "write the report")
    watch(job, "log_results", "MLflow: log report and table")
    watch(mlflow, "register_model", "MLflow: register")
    watch(mlflow, "start_run", "MLflow: open the store and the run")
    watch(mlflow, "log_metrics", "MLflow: metrics")
    folder, own = os.path.split(category.rstrip("/"))
    data = folder if own == name else "auto"
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ["DFM_CACHE_HOME"] = scratch
        mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
        given = Options(category=name, data=data, backbone="resnet18", weights=weights)
        _, seconds = clock(lambda: job.train(given))
        os.chdir("/")
    rows = [("imports", imports), *sorted(table.items(), key=lambda r: -r[1])]
    rows.append(("everything else", seconds - sum(table.values())))
    return {"phases": rows, "total": seconds + imports}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
