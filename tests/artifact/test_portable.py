import json
import subprocess
import sys

from dfm_mlflow.artifact.portable import HALF, obstacle_of, why_not
from dfm_mlflow.artifact.record import DETECTOR, parse_record
from dfm_mlflow.artifact.save_load import save_detector
from dfm_mlflow.export.graph import obstacle

from ..detectors import fit, pictures


def record_of(detector, folder, **changed):
    save_detector(detector, folder)
    raw = json.loads((folder / DETECTOR).read_text())
    return parse_record(json.dumps(raw | changed).encode())


def test_the_record_says_what_the_detector_says(tmp_path):
    plain = fit()
    record = record_of(plain, tmp_path / "plain")
    assert obstacle_of(record) is obstacle(plain) is None
    tiled = fit({"plate": pictures(3)}, tile="128", image_size="256")
    assert obstacle_of(record_of(tiled, tmp_path / "tiled")) == obstacle(tiled)
    assert "tile=128" in obstacle(tiled)
    for precision in HALF:
        half = record_of(plain, tmp_path / precision, precision=precision)
        assert half.precision == precision
        assert f"calibrated in {precision}" in obstacle_of(half) == why_not(None, precision)


def test_it_needs_no_torch():
    code = "import sys, dfm_mlflow.artifact.portable, dfm_mlflow.jobs.export; "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
