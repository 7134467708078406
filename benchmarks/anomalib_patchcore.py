"""anomalib's PatchCore for ``quality.py --peer``, in an environment of its own; prints JSON.

ResNet-18, layers 2 and 3, 1 % of the patches, 256x256, fitted by `Engine.fit`; every test picture
is scored, none chooses anything.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
from anomalib.data import Folder  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import Patchcore  # noqa: E402
from anomalib_server import use_weights  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("category", type=Path)
    parser.add_argument("--weights", required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Patchcore(
        backbone="resnet18",
        layers=("layer2", "layer3"),
        pre_trained=False,
        coreset_sampling_ratio=0.01,
        visualizer=False,
    )
    use_weights(model, given.weights)
    tests = [p.name for p in sorted((given.category / "test").iterdir()) if p.is_dir()]
    data = Folder(
        name="category",
        root=given.category,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{name}" for name in tests if name != "good"],
        val_split_mode="none",
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(default_root_dir=folder, enable_progress_bar=False, limit_val_batches=0)
        start = time.perf_counter()
        engine.fit(model=model, datamodule=data)
        fitted = time.perf_counter()
        batches = engine.predict(model=model, dataloaders=data.test_dataloader())
        scored = time.perf_counter()
    scores = torch.cat([b.pred_score.flatten() for b in batches])
    defective = torch.cat([b.gt_label.flatten() for b in batches])
    found = {
        "image_auroc": float(roc_auc_score(defective.numpy(), scores.numpy())),
        "fit_seconds": fitted - start,
        "images_per_second": len(scores) / (scored - fitted),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
