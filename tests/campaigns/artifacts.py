"""Damaged model folders and weights files through their loaders.

    python -m tests.campaigns.artifacts --inputs 5000 --seed 1

The models are those of ``tests/fixtures/format1``. Half of the changes are those of an attacker,
who writes the right SHA-256 beside them. A fault is an exception that is no DfmError, a change that
is accepted although its hash is wrong, a model that is accepted and then gives no finite score,
more than 10 s of processor time, or more memory than the bound.
"""

import argparse
import hashlib
import io
import json
import logging
import math
import random
import shutil
import sys
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from dfm_mlflow.artifact.save_load import BACKBONE, DETECTOR, STATISTICS, load_detector
from dfm_mlflow.errors import DfmError
from dfm_mlflow.network.weights import load_weights

from .mutation import mutate
from .workers import GOOD, REFUSED, run_all, work

MODULE = "tests.campaigns.artifacts"
FORMAT1 = Path(__file__).parents[1] / "fixtures/format1"
MOST_BYTES = 256 << 20
MOST_SECONDS = 10.0
MOST_SCORED = 512 * 512  # pixels of the input; to score a larger one may cost more than to load
WRONG = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    1.5,
    -1.0,
    1e300,
    1e-320,
    math.nan,
    math.inf,
    2**31,
    2**63,
    2**70,
    "",
    "auto",
    "none",
    "nll",
    "x" * 100_000,
    "../../etc/passwd",
    "\0",
    "é",
    [],
    {},
    [1],
    {"a": 1},
    [[[[[]]]]],
)
KINDS = (np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, bool)


def make(seed: int, i: int) -> tuple[str, tuple[str, dict[str, bytes], bool]]:
    """Give the changed files of a number: which model, its files, and whether hashes are right."""
    rng = random.Random(f"{seed}/{i}")
    if i % 10 == 9:
        kind = rng.choice(("pth", "safetensors"))
        return f"weights.{kind}", (kind, {kind: _damaged(rng, _weights()[kind])}, False)
    model = rng.choice(("one-class", "two-classes", "likelihood"))
    files = dict(_files(model))
    name = rng.choice((DETECTOR, STATISTICS, BACKBONE))
    if rng.random() < 0.3:
        files[name], how = _damaged(rng, files[name]), "bytes"
    elif name == DETECTOR and rng.random() < 0.3:
        files[name], how = _other_input(rng, files[name]), "input"
    elif name == DETECTOR:
        files[name], how = _other_record(rng, files[name]), "values"
    elif rng.random() < 0.3:
        files[name], how = _other_header(rng, files[name]), "header"
    else:
        files[name], how = _other_tensors(rng, files[name]), "tensors"
    right = rng.random() < 0.5
    if right and name != DETECTOR:
        record = json.loads(files[DETECTOR])
        record["sha256"][name] = hashlib.sha256(files[name]).hexdigest()
        files[DETECTOR] = json.dumps(record).encode()
    return f"{model} {name} {how} {'right' if right else 'wrong'} hash", (model, files, right)


def outcome(given: tuple[str, dict[str, bytes], bool]) -> str:
    """Load what was changed."""
    model, files, right = given
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        try:
            if model in files:
                load_weights(str(shutil.move(folder / model, folder / f"w.{model}")), "resnet18", 1)
                return GOOD
            whole = _files(model)
            digest = hashlib.sha256(files[DETECTOR] if right else whole[DETECTOR]).hexdigest()
            detector = load_detector(folder, expected_sha256=digest, device="cpu")
        except DfmError as error:
            return REFUSED if len(str(error)) < 2000 else f"a message of {len(str(error))} letters"
    if not right and files != whole:
        return "accepted with a wrong hash"
    if math.prod(detector.options.size) > MOST_SCORED:
        return GOOD
    scores = detector.score([_picture()])
    finite = np.isfinite(scores[["anomaly_score", "fre", "nll", "p_value"]].to_numpy(float)).all()
    return GOOD if finite and len(scores) == 1 else f"scores {scores.iloc[0].to_dict()}"


@cache
def _files(model: str) -> dict[str, bytes]:
    return {
        name: (FORMAT1 / model / "dfm" / name).read_bytes()
        for name in (DETECTOR, STATISTICS, BACKBONE)
    }


@cache
def _picture() -> bytes:
    return (FORMAT1 / "pictures/good-dark.png").read_bytes()


@cache
def _weights() -> dict[str, bytes]:
    state = {f"layer{i}.weight": torch.arange(40.0).reshape(8, 5) + i for i in range(4)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return {"pth": buffer.getvalue(), "safetensors": save_torch(state)}


def _damaged(rng: random.Random, data: bytes) -> bytes:
    return mutate(rng, data, list(_files("one-class").values()))


def _other_record(rng: random.Random, data: bytes) -> bytes:
    record = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        place, key = _anywhere(rng, record)
        do = rng.randrange(4)
        if do == 0:
            del place[key]
        elif do == 1 and isinstance(place, dict):
            place[rng.choice(("extra", "", "__class__"))] = rng.choice(WRONG)
        elif do == 2 and isinstance(place[key], (int, float)):
            place[key] = place[key] * rng.choice((2, 10, -1, 2**20))
        else:
            place[key] = rng.choice(WRONG)
        if not record:
            break
    return json.dumps(record).encode()


def _other_input(rng: random.Random, data: bytes) -> bytes:
    """Another size of the input, half of the time with a pooling that gives the same shapes."""
    record = json.loads(data)
    options = record["options"]
    if rng.random() < 0.5:
        sides = [int(side) for side in options["image_size"].split("x")]
        rule, _, pixels = options["pooling"].rpartition(":")
        largest = min(4096 // max(sides), 999 // int(pixels))
        times = rng.choice([n for n in (2, 3, 8, 32, 64, 128) if n <= largest])
        options["image_size"] = "x".join(str(times * side) for side in sides)
        options["pooling"] = f"{rule}{':' if rule else ''}{times * int(pixels)}"
    else:
        sides = ("16", "33", "64", "256", "1024", "2048", "4096")
        options["image_size"] = rng.choice((*sides, f"{rng.choice(sides)}x{rng.choice(sides)}"))
        options["pooling"] = str(rng.choice((1, 2, 7, 128, 999)))
    options["tile"] = rng.choice(("none", "none", "128", "1024"))
    return json.dumps(record).encode()


def _anywhere(rng: random.Random, record):
    place, key = record, rng.choice(list(record))
    while isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.85:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    return place, key


def _other_tensors(rng: random.Random, data: bytes) -> bytes:
    arrays = {name: array.copy() for name, array in load(data).items()}
    name = rng.choice(list(arrays))
    array = arrays[name]
    do = rng.randrange(8)
    with np.errstate(all="ignore"):
        if do == 0:
            del arrays[name]
        elif do == 1:
            arrays[name] = array.astype(rng.choice(KINDS))
        elif do == 2:
            arrays[name] = array[: rng.randrange(len(array))]
        elif do == 3:
            arrays[name] = array.reshape(-1, 1)
        elif do == 4:
            arrays[rng.choice(("extra", "9.held_out", "0.0.mean2", "roi"))] = array
        elif do == 5:
            factor = rng.choice((-1, 0, 100, 1e30))
            arrays[name] = (array.astype(np.float64) * factor).astype(array.dtype)
        else:
            some = [rng.randrange(array.size) for _ in range(rng.choice((1, 5)))]
            worst = rng.choice((np.nan, np.inf, -np.inf, -1, 0, 1e38))
            array.flat[some] = worst if array.dtype.kind == "f" else rng.randrange(256)
    return save({k: np.ascontiguousarray(a) for k, a in arrays.items()})


def _other_header(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    place, key = _anywhere(rng, header)
    place[key] = rng.choice((*WRONG, [2**62, 0], [2**40], [0, 2**60], "F8_E4M3", "F4", "BF16"))
    text = json.dumps(header).encode()
    length = rng.choice((len(text),) * 5 + (2**40, 2**63, 0, len(text) - 1, len(text) + 1))
    return length.to_bytes(8, "little") + text + rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        warnings.simplefilter("ignore")
        logging.disable()
        torch.set_num_threads(1)
        for model in ("one-class", "two-classes", "likelihood"):  # what is loaded once
            outcome((model, _files(model), True))
        work(*given.worker, MOST_BYTES, lambda i: make(given.seed, i), outcome)
        return
    begin = time.monotonic()
    tally = run_all(MODULE, given.inputs, given.seed, MOST_BYTES, MOST_SECONDS)
    print(f"load: {tally}, in {time.monotonic() - begin:.0f} s", *tally.faults, sep="\n")
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
