"""anomalib's own inferencer behind a plain FastAPI route: the peer of ``serving.py --anomalib``.

Runs in an environment with anomalib, fastapi and uvicorn; ``serving.py`` makes it and starts this
file. Fits anomalib's DFM (ResNet-18, layer3, pooled by 2, FRE, 256x256) on the pictures of a
folder, exports it as torch, loads the export with `TorchInferencer`, and answers
``POST /invocations``, whose body is a picture's bytes.
"""

import argparse
import io
import os
from pathlib import Path

import torch
import uvicorn
from anomalib.data import Folder
from anomalib.deploy import ExportType, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Dfm
from fastapi import Depends, FastAPI, Request
from PIL import Image
from safetensors.torch import load_file

COUNTER = "num_batches_tracked"  # of no use in scoring, and some files lack or shape it otherwise


def use_weights(model: Dfm, file: str) -> None:
    """Load tensors under torchvision's names, which are those of timm's ResNet."""
    backbone = model.model.feature_extractor.feature_extractor
    state = {k: v for k, v in load_file(file).items() if not k.endswith(COUNTER)}
    missing = backbone.load_state_dict(state, strict=False).missing_keys
    lost = [k for k in missing if not k.endswith(COUNTER)]
    if lost:  # a layer would stay random, unseen
        raise SystemExit(f"{file} lacks {lost}")


def exported(pictures: Path, weights: str | None, folder: Path) -> Path:
    """Fit on all pictures, in anomalib's own way, and give the file of the export."""
    torch.manual_seed(0)
    model = Dfm(
        backbone="resnet18",
        layer="layer3",
        pre_trained=False,
        pooling_kernel_size=2,
        score_type="fre",
    )
    if weights:
        use_weights(model, weights)
    data = Folder(
        name="pictures",
        root=pictures.parent,
        normal_dir=pictures.name,
        num_workers=0,
        test_split_mode="none",
        val_split_mode="none",
    )
    # without pictures to validate on, the engine fails unless it is told to use none of them
    engine = Engine(default_root_dir=folder, enable_progress_bar=False, limit_val_batches=0)
    engine.fit(model=model, datamodule=data)
    return engine.export(model, ExportType.TORCH, export_root=folder)


async def body_of(request: Request) -> bytes:
    return await request.body()


def application(inferencer: TorchInferencer) -> FastAPI:
    """Make the server; the route is no coroutine, so FastAPI runs it in its pool of threads."""
    app = FastAPI()

    @app.post("/invocations")
    def invocations(body: bytes = Depends(body_of)) -> dict[str, float | bool]:
        # anomalib's read_image takes files only; a picture is what the inferencer takes beside
        image = Image.open(io.BytesIO(body)).convert("RGB")
        found = inferencer.predict(image)
        return {"pred_score": found.pred_score.item(), "pred_label": bool(found.pred_label.item())}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True, help="Folder of good ones.")
    parser.add_argument("--weights", help="A .safetensors file; without it they are random.")
    parser.add_argument("--folder", type=Path, required=True, help="Where the export goes.")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    file = exported(given.pictures, given.weights, given.folder)
    os.environ["TRUST_REMOTE_CODE"] = "1"  # it unpickles: the file was written a line above
    inferencer = TorchInferencer(file)
    uvicorn.run(application(inferencer), host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
