"""anomalib's DFM timed for ``speed.py``, in an environment of its own; prints one line of JSON.

ResNet-18 up to layer3, pooled by 2, FRE, 256x256, fitted by `Engine.fit` as its users call it. Its
pictures of results are switched off, so that scoring is scoring.
"""

import argparse
import json
import logging
import os
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from anomalib.data import Folder  # noqa: E402
from anomalib.deploy import ExportType, TorchInferencer  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import Dfm  # noqa: E402
from anomalib_server import use_weights  # noqa: E402
from PIL import Image  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("category", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--validation", choices=["default", "none"], required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Dfm(
        backbone="resnet18",
        layer="layer3",
        pre_trained=False,
        pooling_kernel_size=2,
        score_type="fre",
        visualizer=False,
    )
    use_weights(model, given.weights)
    off = given.validation == "none"
    defects = sorted(
        f"test/{p.name}"
        for p in (given.category / "test").iterdir()
        if p.is_dir() and p.name != "good"
    )
    data = Folder(
        name="category",
        root=given.category,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=defects,
        **({"val_split_mode": "none"} if off else {}),
    )
    engine = Engine(
        default_root_dir=given.folder,
        enable_progress_bar=False,
        **({"limit_val_batches": 0} if off else {}),
    )
    start = time.perf_counter()
    engine.fit(model=model, datamodule=data)
    fitted = time.perf_counter()
    engine.predict(model=model, dataloaders=data.test_dataloader())
    scored = time.perf_counter()
    found = {
        "fit": fitted - start,
        "n_train": len(data.train_data),
        "score": scored - fitted,
        "n_test": len(data.test_data),
    }
    picture = next((given.category / "test" / "good").iterdir())
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    os.environ["TRUST_REMOTE_CODE"] = "1"  # it unpickles what is written here
    inferencer = TorchInferencer(engine.export(model, ExportType.TORCH, export_root=given.folder))
    seconds = []
    for _ in range(80):
        start = time.perf_counter()
        inferencer.predict(pixels).pred_score.item()
        seconds.append(time.perf_counter() - start)
    found["latency"] = float(np.median(seconds[5:]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
