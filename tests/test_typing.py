"""A user's script passes `mypy --strict`: the package's names have types, late as they load."""

import subprocess
import sys
from pathlib import Path

import pytest

import dfm_mlflow

SCRIPT = """
from pathlib import Path

import dfm_mlflow
from dfm_mlflow import DFM, AnomalyDetector, Options, client, load_model, train

detector: AnomalyDetector = load_model("models:/dfm-caps@production")
table = detector.score([Path("a.png"), "b.png", b"..."], fpr=0.02)
flags = detector.predict(["a.png"])
first: bool = bool(flags[0])
fitted = AnomalyDetector.from_images(["a.png"], ["caps"], fpr=0.02)
result = train(data="/pictures/caps", fpr=0.02)
uri: str = result.registered_uri
again = train(Options.parse({"data": "/pictures/caps"}), experiment="caps")
answer = client.score("http://127.0.0.1:5001", ["a.png"], fpr=0.02)
print(len(table), len(answer), DFM(n_components=0.9), dfm_mlflow.__version__, uri, first, fitted)
try:
    dfm_mlflow.save_model(detector, "model")
except dfm_mlflow.DfmError as error:
    print(error)
"""
WRONG = SCRIPT + "number: int = result.registered_uri\n"


def test_every_public_name_is_typed():
    source = Path(dfm_mlflow.__file__).read_text()
    listed = source.split("if TYPE_CHECKING:")[1].split("__version__")[0]
    for name in dfm_mlflow.__all__:
        if name != "__version__":
            assert f"import {name} as {name}" in listed or f"{name} as {name}," in listed, name


@pytest.mark.slow
def test_a_users_script_is_checked_strictly(tmp_path):
    pytest.importorskip("mypy")
    for name, text in {"right.py": SCRIPT, "wrong.py": WRONG}.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "right.py", "wrong.py"], cwd=tmp_path, capture_output=True, text=True
    )
    ours = [line for line in done.stdout.splitlines() if line.startswith("right.py")]
    assert ours == [], done.stdout
    assert "wrong.py:21: error: Incompatible types" in done.stdout
