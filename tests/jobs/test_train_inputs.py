"""What a run does with folders, masks and names as they come."""

import logging
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from dfm_mlflow.cli import cli
from dfm_mlflow.config import EvaluateOptions, Options
from dfm_mlflow.errors import DataError
from dfm_mlflow.jobs.evaluate import evaluate
from dfm_mlflow.jobs.train import train

from ..conftest import texture

pytestmark = pytest.mark.integration  # whole jobs, one after the other

SMALL = {
    "weights": "random",
    "image_size": "64",
    "backbone": "resnet18",
    "layers": "layer1",
    "device": "cpu",
}


@pytest.fixture
def screws(tmp_path):
    """Good and bad side by side, with masks beside them, and what a line leaves in folders."""
    rng = np.random.default_rng(0)
    root = tmp_path / "screws.v2"
    for folder, n, defect in (("OK", 20, False), ("NG/hole", 6, True)):
        (root / folder).mkdir(parents=True)
        (root / "masks" / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            picture = texture(rng, defect=defect)
            Image.fromarray(picture).save(root / folder / f"{i:03d}.png")
            if defect:
                mask = (picture[:, :, 0] == 10).astype(np.uint8) * 255
                Image.fromarray(mask).save(root / "masks" / folder / f"{i:03d}.png")
    (root / "OK/Thumbs.db").write_bytes(b"x")
    (root / "OK/.ipynb_checkpoints").mkdir()
    shutil.copy(root / "OK/000.png", root / "OK/.ipynb_checkpoints/000-checkpoint.png")
    (root / "OK/new.heic").write_bytes(b"x")
    (root / "OK/gone.png").symlink_to(root / "none.png")
    return root


def options(data, **more):
    return Options.parse({"data": str(data), **SMALL, **more})


def report(run_id):
    path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/report/report.html")
    with open(path, encoding="utf-8") as page:
        return page.read()


def test_a_run_is_named_after_its_folder_and_accounts_for_every_file(store, screws, caplog):
    with caplog.at_level(logging.INFO):
        result = train(options(screws))
    line = (
        "Used 26 pictures of screws.v2 (good and bad side by side, the last fifth of each good "
        "folder to test on): 16 to fit on, 10 to test on (4 good, 6 of hole; 6 masks); not used: "
        "2 hidden files or folders, 1 .heic (convert to JPEG), 1 links that lead nowhere."
    )
    assert [r.levelname for r in caplog.records if r.getMessage() == line] == ["WARNING"]
    assert line in report(result.run_id)
    run = mlflow.get_run(result.run_id)
    assert run.data.metrics["n_unused_files"] == 4
    assert run.data.metrics["n_without_mask"] == 0
    assert run.data.params["resolved_category"] == "screws.v2"
    assert run.data.params["resolved_data"] == str(screws)
    assert {"image_auroc", "pixel_auroc", "image_auroc/hole"} <= set(run.data.metrics)
    assert result.registered_uri == "models:/dfm-screws-v2/1"
    # the model's own data are dealt as they were; other data are all new
    own = evaluate(EvaluateOptions.parse({"model": result.registered_uri}))
    assert own.metrics["image_auroc"] == run.data.metrics["image_auroc"]
    assert mlflow.get_run(own.run_id).data.metrics["n_unused_files"] == 4
    june = shutil.copytree(screws, screws.parent / "june", symlinks=True)
    other = evaluate(EvaluateOptions.parse({"model": result.registered_uri, "data": str(june)}))
    assert (own.metrics["n_test"], other.metrics["n_test"]) == (10, 26)


def test_a_broken_mask_is_named_counted_as_missing_and_costs_no_run(store, screws, caplog):
    broken = screws / "masks/NG/hole/002.png"
    broken.write_bytes(b"noise")
    Image.new("L", (64, 64)).save(screws / "masks/NG/hole/003.png")
    Image.new("L", (64, 32), 255).save(screws / "masks/NG/hole/004.png")
    wide = Image.new("L", (64, 32))
    wide.paste(255, (0, 0, 8, 8))
    wide.save(screws / "masks/NG/hole/005.png")
    result = train(options(screws, registered_model="none"))
    said = [r.getMessage() for r in caplog.records if "mask" in r.getMessage()]
    first = next(s for s in said if s.startswith("3 of 6 masks are not used and count as missing"))
    assert f"{broken}: The bytes are not a picture" in first
    assert "003.png marks nothing" in first
    assert "004.png marks 100% of its picture" in first
    # its proportions are known when the picture has been read
    assert any("005.png: it has 64x32 pixels, and its picture 64x64" in s for s in said)
    assert result.metrics["n_without_mask"] == 4
    assert result.metrics["pixel_auroc"] > 0.5


def test_masks_of_another_convention_are_said_and_may_be_named(store, screws, caplog):
    (screws / "masks").rename(screws / "drawn")
    with pytest.raises(DataError, match=r"drawn.* does not say .*: give good=drawn or bad=drawn"):
        train(options(screws))
    result = train(options(screws, masks="drawn", registered_model="none"))
    assert result.metrics["n_without_mask"] == 0
    assert "pixel_auroc" in result.metrics


def test_a_name_that_may_be_either_starts_no_run(store, screws):
    (screws / "OK").rename(screws / "pass")
    with pytest.raises(DataError, match="give good=pass or bad=pass"):
        train(options(screws))
    assert mlflow.MlflowClient().search_runs(["0"]) == []
    result = train(options(screws, good="pass", registered_model="none"))
    assert result.detector.options.good == "pass"
    assert result.metrics["n_train"] == 16


def test_the_command_line_names_the_run_after_the_folder(store, screws, monkeypatch):
    monkeypatch.chdir(screws.parent)
    given = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    done = CliRunner().invoke(cli, ["train", "--data", screws.name, *given])
    assert done.exit_code == 0, done.exception
    assert "models:/dfm-screws-v2/1" in done.output
    nameless = CliRunner().invoke(cli, ["train", *given])
    assert "give category=<name>" in str(nameless.exception)
    missing = CliRunner().invoke(cli, ["train", "--data", "nuts", *given])
    assert str(screws.parent / "nuts") in str(missing.exception)


def test_labels_of_a_table_mean_good_as_folders_do(store, screws):
    result = train(options(screws))
    files = [*sorted((screws / "OK").glob("0*.png"))[:6], *sorted((screws / "NG/hole").iterdir())]
    images = [path.read_bytes() for path in files]

    def evaluated(labels):
        return mlflow.models.evaluate(
            result.registered_uri,
            pd.DataFrame({"image": images, "label": labels}),
            targets="label",
            model_type="dfm",
        ).metrics

    expected = evaluated(["good"] * 6 + ["hole"] * 6)["false_positive_rate"]
    for good, bad in (("OK", "NG"), ("Normal", "hole"), ("0", "1")):
        assert evaluated([good] * 6 + [bad] * 6)["false_positive_rate"] == expected
    with pytest.raises(DataError, match="'pass' of row 0 may mean good or defective"):
        evaluated(["pass"] * 6 + ["hole"] * 6)
