"""Small pictures made here, and further real ones where DFM_TEST_DATA names them."""

import logging
import os
import re
import shutil
import sqlite3
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pytest
from hypothesis import settings
from mlflow.tracking import fluent
from PIL import Image

from .lines import line, made_line  # noqa: F401
from .stores import pauses, s3_server, s3_store  # noqa: F401
from .zoo import SMALL, registry, zoo  # noqa: F401

# The flavor holds no pickle, so everything must work where none may be read: in this process and
# in those that tests start.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"

# A property is tried on few examples, and on five times as many with HYPOTHESIS_PROFILE=ci, which
# .ci/run sets. How long one takes says more about the machine than about the code.
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.register_profile("quick", deadline=None, max_examples=10)
settings.register_profile("ci", deadline=None, max_examples=50)
settings.load_profile(PROFILE)


def examples(n):
    """Try a property on n examples with the profile ci; on a tenth, 5 at least, with quick."""
    return settings(max_examples=n if PROFILE == "ci" else max(n // 10, 5))


def modules_with(*fixtures):
    """Name the modules with tests or fixtures that ask for shared fixtures, not for their own."""
    asks = re.compile(rf"def \w+\([^)]*\b({'|'.join(fixtures)})\b")
    own = re.compile(rf"^def ({'|'.join(fixtures)})\(", re.MULTILINE)
    texts = {path: path.read_text() for path in sorted(TESTS.rglob("test_*.py"))}
    found = [path for path, text in texts.items() if asks.search(text) and not own.search(text)]
    return {path.relative_to(TESTS).with_suffix("").as_posix() for path in found}


# Modules that share what is dear to make, the zoo or a trained run: one worker has them all.
TESTS = Path(__file__).parent
ZOO = modules_with("zoo", "registry")
TRAINED = modules_with("trained", "train_once") - ZOO
# What takes longest begins first, so that the workers end together.
LONGEST = (
    *("test_floors", "test_learning_line", "test_validity"),
    *("zoo", "test_stack", "spark", "faults", "trained", "test_notebook", "test_end_to_end"),
    *("test_examples", "serving/test_monitored_server", "jobs/test_sweep", "jobs/test_update"),
    "jobs/test_train",
    *("jobs/test_learned_set", "jobs/test_tune", "export/test_graph", "detector/test_layer_fit"),
)


def group_of(nodeid):
    module = nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")
    if module.startswith("spark/test_"):
        return "spark"
    if module in ("test_campaigns", "test_faults"):  # both start runs in processes that were forked
        return "faults"
    if module in TRAINED:
        return "trained"
    return "zoo" if module in ZOO else module


def pytest_collection_modifyitems(items):
    longest = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: longest.get(group_of(item.nodeid), len(longest)))
    for item in items:
        if "spark" in item.fixturenames:
            item.add_marker(pytest.mark.integration)


# How many tests that take long were not chosen, which pytest's summary says.
LEFT_OUT = {"integration": 0, "slow": 0}


def pytest_deselected(items):
    for item in items:
        marked = [name for name in LEFT_OUT if item.get_closest_marker(name)]
        for name in marked[:1]:
            LEFT_OUT[name] += 1


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = LEFT_OUT


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take a worker's numbers: each sees all tests, and the process that reports sees none."""
    LEFT_OUT.update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter):
    if any(LEFT_OUT.values()):
        terminalreporter.line(
            f"{LEFT_OUT['integration']} integration and {LEFT_OUT['slow']} slow tests left out: "
            "make test ARGS=\"-m 'integration or slow'\""
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give a worker whole groups, which are modules but for those that share."""
    from xdist.scheduler import LoadFileScheduling

    class Groups(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return Groups(config, log)


def texture(rng: np.random.Generator, size: int = 64, defect: bool = False) -> np.ndarray:
    """A striped picture of slightly varying phase, with a dark square where there is a defect."""
    y, x = np.mgrid[:size, :size]
    base = 128 + 50 * np.sin(x / 4 + rng.uniform(0, 0.5)) + 20 * np.cos(y / 7 + rng.uniform(0, 0.3))
    image = np.repeat((base + rng.normal(0, 4, base.shape))[:, :, None], 3, axis=2)
    if defect:
        top, left = rng.integers(8, size - 24, 2)
        image[top : top + 16, left : left + 16] = 10
    return image.clip(0, 255).astype(np.uint8)


def write_category(root: Path, name: str, seed: int = 0, n_train: int = 24) -> Path:
    """An MVTec-layout folder; the last defective picture has no mask."""
    rng = np.random.default_rng(seed)
    plan = [("train/good", n_train, False), ("test/good", 8, False), ("test/hole", 6, True)]
    for folder, n, defect in plan:
        target = root / name / folder
        target.mkdir(parents=True)
        for i in range(n):
            picture = texture(rng, defect=defect)
            Image.fromarray(picture).save(target / f"{i:03d}.png")
            if defect and i < n - 1:
                masks = root / name / "ground_truth" / target.name
                masks.mkdir(parents=True, exist_ok=True)
                mask = (picture[:, :, 0] == 10).astype(np.uint8) * 255
                Image.fromarray(mask).save(masks / f"{i:03d}_mask.png")
    return root


@pytest.fixture(scope="session")
def mvtec_like(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_category(root, "stripes", 0)
    return write_category(root, "bands", 1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("DFM_TEST_DATA")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("DFM_TEST_DATA does not name a folder with real pictures and weights")
    return Path(folder)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    if "DFM_CACHE_HOME" not in os.environ:
        monkeypatch.setenv("DFM_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _logged_once(monkeypatch):
    """MLflow loads every model that it logs to try its example; the processes of tests still do."""
    monkeypatch.setattr("mlflow.models.utils._validate_serving_input", lambda *given, **named: None)


@pytest.fixture(scope="session", autouse=True)
def _undrawn():
    """Leave charts, most of a small training, to tests that look at them, and to processes."""
    from .drawing import left_out

    with left_out():
        yield


@pytest.fixture(autouse=True)
def _no_experiment_is_left():
    """``mlflow.set_experiment`` tells later tests and processes of a store that is gone by then."""
    yield
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    fluent._active_experiment_id = None


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """The tables of an empty store, which take MLflow seconds to make, in one file."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def forget(connection, _):
        """No store of this process must outlast the machine: nothing waits for the disk."""
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@contextmanager
def in_store(database, folder):
    """Work in a folder that holds a copy of a store."""
    shutil.copy(database, folder / "mlflow.db")
    with closing(sqlite3.connect(folder / "mlflow.db")) as opened, opened:
        opened.execute("UPDATE experiments SET artifact_location = ?", [str(folder / "mlruns/0")])
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    previous = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment_id="0")  # a test before may have chosen another
        yield uri
        while mlflow.active_run():
            mlflow.end_run()
        mlflow.set_tracking_uri(previous)


@pytest.fixture
def store(tmp_path, empty_store, monkeypatch):
    """A real sqlite tracking store and registry of its own."""
    with in_store(empty_store, tmp_path) as uri:
        yield uri
        monkeypatch.undo()  # while the folder that it goes back to is there


@pytest.fixture(scope="session")
def train_once(tmp_path_factory, empty_store, mvtec_like):
    """Train on stripes, each time with other options, and give the store that holds the run."""
    from dfm_mlflow.config import Options
    from dfm_mlflow.jobs.train import train

    made = {}

    def given(**more):
        key = tuple(sorted(more.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("trained")
            small = SMALL | {"data": str(mvtec_like), "registered_model": "auto"} | more
            with in_store(empty_store, folder):
                result = train(Options.parse(small))
            made[key] = folder / "mlflow.db", result
        return made[key]

    return given


@pytest.fixture
def trained(train_once, tmp_path):
    """A run and ``models:/dfm-stripes/1``, made once; the store that they are in is a copy."""
    database, result = train_once(fpr="0.1")
    with in_store(database, tmp_path):
        yield result


@pytest.fixture(autouse=True)
def _console_as_before():
    """Let no test hear of the command line of another one, which sets up the log of a process."""
    names = ("MLFLOW_LOGGING_LEVEL", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "TQDM_DISABLE")
    root = logging.getLogger()
    level, known = root.level, {name: os.environ.get(name) for name in names}
    yield
    root.setLevel(level)
    for handler in [h for h in root.handlers if type(h).__module__ == "dfm_mlflow.console.log"]:
        root.removeHandler(handler)
    if "dfm_mlflow.console.log" in sys.modules:
        sys.modules["dfm_mlflow.console.log"]._level = "normal"
    for name, value in known.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
