"""Damaged pictures through ``images.decode`` and through a live server.

    python -m tests.campaigns.images --inputs 20000 --requests 2000 --seed 1

A fault is a process that dies, an exception that is no ImageError, more than 2 s of processor time,
more memory than the bound, or an array of another shape than the picture's; at the server an answer
that is not 200 with the right scores of the whole pictures beside the damaged one.
"""

import argparse
import base64
import io
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import FORMATS, MAX_PIXELS, decode_image

from ..servers import PARQUET, get, parquet, post, serving
from .mutation import encode, picture
from .workers import GOOD, REFUSED, run_all, work

MOST_BYTES = 20 * MAX_PIXELS  # that decoding may need beside the file: 1 GB at the default limit
MODULE = "tests.campaigns.images"


def outcome(data: bytes) -> str:
    """Decode one picture."""
    try:
        pixels = decode_image(data)
    except ImageError:
        return REFUSED
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        sizes = {(*image.size, 3), (*image.size[::-1], 3)}
    if pixels.shape not in sizes or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
        return f"an array of {pixels.shape} {pixels.dtype} from a picture of {image.size}"
    return GOOD


def serve_all(requests: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Send damaged pictures between two whole ones to a live server; gives counts and faults."""
    import dfm_mlflow

    from ..detectors import fit, pictures

    dfm_mlflow.save_model(fit({"stripes": pictures(20)}), folder / "model")
    first, last = pictures(2, 7)
    faults, counts = [], Counter()
    with serving(folder / "model", folder / "server.log") as url:
        _, answer = post(url, parquet([first, last]), PARQUET)
        want = [row["anomaly_score"] for row in answer["predictions"]]

        def ask(i: int) -> None:
            data = picture(seed, i)[1]
            begin = time.monotonic()
            status, answer = post(url, _records([first, data, last]))
            counts["slowest, s"] = max(counts["slowest, s"], round(time.monotonic() - begin))
            rows = answer["predictions"] if status == 200 else []
            if len(rows) != 3 or not np.allclose(
                [rows[0]["anomaly_score"], rows[2]["anomaly_score"]], want, rtol=1e-4
            ):
                faults.append(f"request {i}: {status} {str(answer)[:300]}")
                return
            counts["scored" if rows[1]["error"] is None else "refused"] += 1
            if i % 50 == 0 and get(f"{url}/ping") != 200:
                faults.append(f"request {i}: /ping")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(requests)))
    log = (folder / "server.log").read_text()
    faults += [line for line in log.splitlines() if "Traceback" in line]
    return counts, faults


def _records(images: list[bytes]) -> dict:
    records = [{"image": base64.b64encode(i).decode()} for i in images]
    return {"dataframe_records": records, "params": {"on_error": "report"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        warnings.simplefilter("ignore")
        outcome(encode(Image.new("RGB", (8, 8)), "PNG"))  # what is loaded once is no growth
        work(*given.worker, MOST_BYTES, lambda i: picture(given.seed, i), outcome)
        return
    begin = time.monotonic()
    tally = run_all(MODULE, given.inputs, given.seed, MOST_BYTES)
    print(f"decode: {tally}, in {time.monotonic() - begin:.0f} s", *tally.faults, sep="\n")
    faults: list[str] = []
    if given.requests:
        with tempfile.TemporaryDirectory() as name:
            counts, faults = serve_all(given.requests, given.seed, Path(name))
        print(f"server: {dict(counts)}, {len(faults)} faults", *faults, sep="\n")
    sys.exit(bool(tally.faults or faults))


if __name__ == "__main__":
    main()
