import mlflow
import pytest

from dfm_mlflow.errors import PromotionError
from dfm_mlflow.registry.candidate import unsafe_files

from .test_promote import ask


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
