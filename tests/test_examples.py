"""The examples run as they are, on small pictures."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(store, monkeypatch, capsys):
    """Run an example in a folder with a store of its own; gives what it printed."""

    def call(name, *arguments):
        path = str(ROOT / "examples" / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        monkeypatch.syspath_prepend(ROOT / "examples")
        status = None
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:  # click's
            status = ended.code
        assert not status
        return capsys.readouterr().out

    return call


@pytest.mark.slow
def test_a_folder_becomes_a_served_model_and_gives_maps(run, mvtec_like, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mvtec_like / "stripes/train/good", tmp_path / "bottles")
    printed = run("own_folder.py", tmp_path / "bottles", "--weights", "random")
    assert "p-value" in printed
    assert "anomaly: " in printed
    assert (tmp_path / "bottles-map.png").is_file()
    defect = tmp_path / "turned.jpg"  # as a camera that was held upright writes it
    with Image.open(mvtec_like / "stripes/test/hole/000.png") as image:
        wide = image.convert("RGB").crop((0, 0, 64, 48))
        exif = Image.Exif()
        exif[0x0112] = 6
        wide.save(defect, exif=exif, quality=95)
    printed = run("anomaly_maps.py", "models:/dfm-bottles/1", tmp_path / "maps", defect)
    assert "p-value 0.0" in printed
    with Image.open(tmp_path / "maps/turned.png") as image:
        assert image.height > image.width  # turned, with a legend below


@pytest.mark.slow
def test_one_model_knows_several_categories(run, mvtec_like):
    printed = run("several_categories.py", mvtec_like, "stripes,bands", "--weights", "random")
    assert "predicted_class" in printed
    assert "models:/dfm-stripes-bands/1" in printed


def test_digits_that_are_unknown_are_told_from_known_ones(run):
    table = run("ood_digits.py").splitlines()
    assert float(table[2].split("|")[2]) > 0.95
