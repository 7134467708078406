import pytest
import torch

from dfm_mlflow.errors import DeviceError
from dfm_mlflow.network.cache import FeatureCache

from .conftest import PICTURES, make


@pytest.fixture(autouse=True)
def cores():
    """At least two, whatever the suite runs with."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_many_pictures_run_in_the_threads_that_decode_them(
    backbone, precision, tmp_path, monkeypatch, cores
):
    n = 8 * cores + 3
    sources = [PICTURES[i % 11] for i in range(n)]
    sources[5] = b"noise"
    extractor = make(backbone, precision=precision, cache=FeatureCache(tmp_path))
    few = torch.cat(
        [
            extractor.extract(sources[i : i + 2]).features[0]
            for i in (*range(0, 4, 2), *range(6, n - 1, 2))
        ]
    )
    seen = []
    run = extractor.run_batch
    monkeypatch.setattr(
        extractor,
        "run_batch",
        lambda p: seen.append((len(p), torch.get_num_threads())) or run(p),
    )
    extractor.cache = None
    many = extractor.extract(sources)
    assert many.kept == [i for i in range(n) if i != 5]
    assert list(many.errors) == [5]
    # what was extracted a pair at a time, in the caller's thread, is there bit by bit
    rows = [
        many.kept.index(i)
        for pair in (*range(0, 4, 2), *range(6, n - 1, 2))
        for i in (pair, pair + 1)
    ]
    assert torch.equal(many.features[0][rows], few)
    assert {threads for _, threads in seen} == {1}
    assert max(size for size, _ in seen) == 4
    assert torch.get_num_threads() == cores  # of this thread, as before


def test_an_error_of_a_pass_in_another_thread_is_raised(backbone, monkeypatch):
    extractor = make(backbone)

    def fail(pixels):
        raise DeviceError("no memory")

    monkeypatch.setattr(extractor, "run_batch", fail)
    with pytest.raises(DeviceError, match="no memory"):
        extractor.extract(PICTURES * 8)


def test_unreadable_pictures_are_reported_and_the_others_kept(backbone, tmp_path):
    sources = [PICTURES[0], b"noise", PICTURES[1], tmp_path / "missing.png", PICTURES[2]]
    extraction = make(backbone, batch_size=2).extract(sources)
    assert extraction.kept == [0, 2, 4]
    assert set(extraction.errors) == {1, 3}
    expected = make(backbone).extract(PICTURES[:3]).features[0]
    torch.testing.assert_close(extraction.features[0], expected, rtol=1e-5, atol=1e-6)
