import torch

from dfm_mlflow.network.copies import COPIES

from .conftest import PICTURES, make


def test_copies_of_held_inputs_are_those_of_a_picture_that_is_read_again(
    backbone, tmp_path, monkeypatch
):
    paths = []
    for i, data in enumerate(PICTURES[:3]):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(data)
    again = make(backbone).extract(paths, copies=COPIES["rotations"]).features
    extractor = make(backbone)
    extractor.extract(paths, hold=True)
    for path in paths:
        path.unlink()  # what is held is not read
    held = extractor.extract(paths, copies=COPIES["rotations"])
    assert held.kept == [0, 1, 2]
    assert len(held.digests) == 3
    for a, b in zip(held.features, again, strict=True):
        torch.testing.assert_close(a, b)
    extractor.release()
    assert len(extractor.extract(paths).errors) == 3
