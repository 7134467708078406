from types import SimpleNamespace

import mlflow
import pytest

from dfm_mlflow.errors import PromotionError
from dfm_mlflow.registry import gates
from dfm_mlflow.registry.gates import unsafe_files

from .test_promote import ask


def test_time_is_the_median_over_rounds_by_turns(monkeypatch):
    clock, turns = [0.0], []
    monkeypatch.setattr(gates.time, "perf_counter", lambda: clock[0])

    def detector(name, seconds):
        def score(images):
            turns.append(name)
            # now and then the machine is busy for the length of a round
            clock[0] += seconds * (20 if len(turns) // 2 % 5 == 3 else 1)

        return SimpleNamespace(score=score)

    ratio, new, old = gates.compare_speed(detector("new", 0.3), detector("old", 0.1), [b""] * 8)
    assert (ratio, new, old) == pytest.approx((3, 8 / 0.3, 8 / 0.1))
    rounds = [tuple(turns[i : i + 2]) for i in range(2, len(turns), 2)]
    assert set(rounds) == {("new", "old"), ("old", "new")}
    assert len(rounds) >= 5


def spoil_pickle(folder):
    (folder / "notes.bin").write_bytes(b"\x80\x04K\x01.")


def spoil_code(folder):
    (folder / "code").mkdir()
    (folder / "code/extra.py").write_text("")


def spoil_bytes(folder):
    path = folder / "dfm/statistics.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def spoil_loader(folder):
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("loader_module: dfm_mlflow", "loader_module: os"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_pickle, r"holds notes.bin \(pickle\)"),
        (spoil_code, "holds code/"),
        (spoil_bytes, "does not load: .* SHA-256"),
        (spoil_loader, "holds the loader os"),
    ],
)
def test_an_unsafe_or_broken_model_is_never_promoted(registry, tmp_path, spoil, words):
    folder = tmp_path / "model"
    mlflow.artifacts.download_artifacts(registry.zoo.runs["good"].model_uri, dst_path=str(folder))
    assert unsafe_files(folder) == []
    spoil(folder)
    registry.add_folder(folder, "good")
    with pytest.raises(PromotionError, match=words):
        ask(registry, 1, force="true", reason="in a hurry")
    assert registry.aliases == {}
