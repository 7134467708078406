"""Damaged pictures through ``images.decode`` and through a live server.

    python -m tests.campaigns.images --inputs 20000 --requests 2000 --seed 1

A fault is a process that dies, an exception that is no ImageError, more processor time or memory
than the bounds, an array of another shape than the picture's, or from a PNG other pixels than
Pillow's, or any where it refuses; at the server an answer that is late, or not 200 with the right
scores of the whole pictures beside the damaged one, and memory that grows.
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
from PIL import Image, ImageOps

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import FORMATS, Decoder, decode_image
from dfm_mlflow.images.depth import Depth
from dfm_mlflow.images.limits import MAX_BYTES, MAX_PIXELS

from ..servers import PARQUET, get, parquet, post, serving
from .load import megabytes
from .mutation import encode, picture
from .workers import GOOD, REFUSED, run_all, work

MOST_BYTES = 20 * MAX_PIXELS  # that decoding may need beside the file: 1 GB at the default limit
MOST_COMPARED = 4_000_000  # pixels that Pillow decodes once more
MOST_WAIT = 20.0  # seconds for a request, among eight at a time
MOST_GROWTH = 300.0  # MB of the server from the first tenth of the requests to their end
MODULE = "tests.campaigns.images"
# That knows a depth, and so goes other ways through pictures of more than 8 bits a value.
KNOWING = Decoder(Depth(12, 4), (0.0, 255.0))


def most_seconds(pixels: int, n: int) -> float:
    """Processor time that a file of `n` bytes may need, which claims so many pixels."""
    return 2 + 0.5 * min(pixels, MAX_PIXELS) / 1e7 + 2 * n / 1e7


def outcome(data: bytes) -> str:
    """Decode one picture."""
    begin = time.process_time()
    try:
        pixels = decode_image(data)
    except ImageError:
        pixels = None
    seconds = time.process_time() - begin
    begin = time.process_time()
    try:
        known = KNOWING.decode(data)[0]
    except ImageError:
        known = pixels
    seconds = max(seconds, time.process_time() - begin)
    if pixels is not None and known.shape != pixels.shape:
        return f"an array of {known.shape} where the depth is known, and else of {pixels.shape}"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size, kind = image.size, image.format
    except Exception:
        size, kind = (0, 0), None
    if seconds > most_seconds(size[0] * size[1], len(data)):
        return f"{seconds:.2f} s of processor time for {size} pixels in {len(data)} bytes"
    if pixels is None:
        return REFUSED
    sizes = {(*size, 3), (*size[::-1], 3)}
    if pixels.shape not in sizes or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
        return f"an array of {pixels.shape} {pixels.dtype} from a picture of {size}"
    if kind == "PNG" and pixels[:, :, 0].size <= MOST_COMPARED:
        theirs = by_pillow(data)
        if theirs is None:
            return f"accepted, though Pillow refuses the picture of {size}"
        if not np.array_equal(pixels, theirs):
            return f"other pixels than Pillow's from a picture of {size}"
    return GOOD


def by_pillow(data: bytes) -> np.ndarray | None:
    """Pixels of a PNG by nothing but Pillow; None where it refuses."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            image = ImageOps.exif_transpose(opened)
            if not image.mode.startswith("I"):
                return np.asarray(image.convert("RGB"))
            grey = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
            return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    except Exception:
        return None


def serve_all(requests: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Send damaged pictures between two whole ones to a live server; gives counts and faults."""
    import dfm_mlflow

    from ..detectors import fit, pictures

    dfm_mlflow.save_model(fit({"stripes": pictures(20)}), folder / "model")
    first, last = pictures(2, 7)
    faults, counts, memory = [], Counter(), []
    with serving(folder / "model", folder / "server.log") as url:
        _, answer = post(url, parquet([first, last]), PARQUET)
        want = [row["anomaly_score"] for row in answer["predictions"]]

        def ask(i: int) -> None:
            data = picture(seed, i)[1]
            begin = time.monotonic()
            status, answer = post(url, _records([first, data, last]))
            waited = time.monotonic() - begin
            counts["slowest, s"] = max(counts["slowest, s"], round(waited, 1))
            if waited > MOST_WAIT:
                faults.append(f"request {i}: {waited:.1f} s")
            memory.append(megabytes(url.process.pid))
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
        memory.append(megabytes(url.process.pid))
    before = max(memory[: requests // 10 + 8])
    counts |= {"MB at first": round(before), "MB at most": round(max(memory))}
    counts["MB at last"] = round(memory[-1])
    if memory[-1] > before + MOST_GROWTH or max(memory) > before + MOST_BYTES / 1e6:
        faults.append(f"memory: {counts}")
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
    longest = most_seconds(MAX_PIXELS, MAX_BYTES)  # what is due to one picture says outcome()
    tally = run_all(MODULE, given.inputs, given.seed, MOST_BYTES, longest)
    print(f"decode: {tally}, in {time.monotonic() - begin:.0f} s", *tally.faults, sep="\n")
    faults: list[str] = []
    if given.requests:
        with tempfile.TemporaryDirectory() as name:
            counts, faults = serve_all(given.requests, given.seed, Path(name))
        print(f"server: {dict(counts)}, {len(faults)} faults", *faults, sep="\n")
    sys.exit(bool(tally.faults or faults))


if __name__ == "__main__":
    main()
