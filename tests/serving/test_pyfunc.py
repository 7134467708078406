"""The adapter from MLflow's inputs, threads and errors to a detector, in this process."""

import base64
import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

import dfm_mlflow
from dfm_mlflow.columns import COLUMNS
from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.errors import ConfigError, ImageError
from dfm_mlflow.serving import engine as engine_module
from dfm_mlflow.serving import pyfunc as pyfunc_module
from dfm_mlflow.serving import refusal as refusal_module
from dfm_mlflow.serving.batcher import OverloadedError
from dfm_mlflow.serving.inputs import to_picture
from dfm_mlflow.serving.limits import LateError
from dfm_mlflow.serving.pyfunc import PyfuncModel
from dfm_mlflow.serving.refusal import RequestError, kind_of

from ..detectors import pictures

IMAGES = pictures(2, 7) + pictures(2, 8, defect=True)
PNG = b"\x89PNG and so on"


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("pyfunc") / "model"
    dfm_mlflow.save_model(detector, path)
    return path


def frame(images):
    return pd.DataFrame({"image": list(images)})


def test_threads_get_their_own_scores(detector):
    images = pictures(24, 5) + pictures(24, 6, defect=True)
    expected = detector.score(images)
    assert expected["anomaly_score"].is_unique
    model = PyfuncModel(detector)
    with ThreadPoolExecutor(64) as pool:
        order = np.random.default_rng(0).integers(0, len(images), 256)
        answers = list(pool.map(lambda i: model.predict(frame([images[i]])), order))
    scores = [answer["anomaly_score"][0] for answer in answers]
    np.testing.assert_allclose(scores, expected["anomaly_score"][order], rtol=1e-4)
    alone = PyfuncModel(detector, ServingSettings(queue_size=0)).predict(frame(images))
    np.testing.assert_allclose(alone["anomaly_score"], expected["anomaly_score"], rtol=1e-4)


def test_a_bad_picture_hurts_its_own_request_only(detector):
    good = pictures(1, 5)[0]
    model = PyfuncModel(detector)

    def one(i):
        try:
            return len(model.predict(frame([b"noise" if i % 3 == 0 else good])))
        except MlflowException as error:
            return error.get_http_status_code()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(48)))
    assert answers == [400 if i % 3 == 0 else 1 for i in range(48)]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 503, "Memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, "Memory ran out"),
        (MemoryError(), 503, "Memory ran out"),
        (ZeroDivisionError("secret"), 500, r"failed at this request \(ZeroDivisionError\)"),
    ],
)
@pytest.mark.parametrize("queue_size", [0, 4])
def test_failures_of_the_network_are_the_server_s(
    monkeypatch, caplog, detector, queue_size, error, status, words
):
    def fail(pixels):
        raise error

    images = pictures(1, 5)
    with monkeypatch.context() as patch:
        patch.setattr(detector.extractor, "run_batch", fail)
        model = PyfuncModel(detector, ServingSettings(queue_size=queue_size))
    if not queue_size:
        monkeypatch.setattr(detector.extractor, "run_batch", fail)
    with pytest.raises(MlflowException, match=words) as caught:
        model.predict(frame(images))
    body = caught.value.serialize_as_json()
    assert caught.value.get_http_status_code() == status
    assert "secret" not in body
    assert "Traceback" not in body
    assert ("Traceback" in caplog.text) == (status == 500)
    monkeypatch.undo()
    if queue_size:
        model.engines.current.batcher._forward = detector.extractor.run_batch
    assert len(model.predict(frame(images))) == 1


def test_a_lack_of_memory_while_decoding_is_not_the_picture_s_fault(detector, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("dfm_mlflow.images.decode._to_rgb", fail)
    with pytest.raises(MlflowException, match="Memory ran out") as caught:
        PyfuncModel(detector).predict(frame(pictures(1)), {"on_error": "report"})
    assert caught.value.get_http_status_code() == 503


def test_a_full_model_is_a_503(detector):
    model = PyfuncModel(detector, ServingSettings(queue_size=1))
    with (
        model.engines.current.batcher.admit(),
        pytest.raises(MlflowException, match="as it takes") as caught,
    ):
        model.predict(frame(pictures(1)))
    assert caught.value.get_http_status_code() == 503
    assert len(model.predict(frame(pictures(1)))) == 1


def test_a_model_that_is_let_go_takes_its_thread_along(detector):
    model = PyfuncModel(detector)
    worker, gone = model.engines.current.batcher._worker, weakref.ref(model)
    del model
    assert gone() is None
    worker.join(20)
    assert not worker.is_alive()


def test_loading_leaves_the_threads_of_torch_alone(detector, monkeypatch):
    before = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(
        detector.extractor,
        "run_batch",
        lambda pixels, run=detector.extractor.run_batch: (
            seen.append(torch.get_num_threads()) or run(pixels)
        ),
    )
    PyfuncModel(detector, ServingSettings(threads=3)).predict(frame(pictures(1)))
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_native_and_pyfunc_agree_for_raw_and_base64(detector, saved):
    native = dfm_mlflow.load_model(str(saved)).score(IMAGES)
    generic = mlflow.pyfunc.load_model(str(saved))
    coded = [base64.b64encode(i) for i in IMAGES]
    for images in (IMAGES, coded):
        scored = generic.predict(pd.DataFrame({"image": images}))
        pd.testing.assert_frame_equal(scored, native)
    adapter = pyfunc_module.PyfuncModel(detector)
    for form in (coded, np.array(coded, object), {"image": [c.decode() for c in coded]}):
        np.testing.assert_allclose(adapter.predict(form)["fre"], native["fre"], rtol=1e-5)


def test_parameters_reach_the_score(saved):
    model = mlflow.pyfunc.load_model(str(saved))
    frame = pd.DataFrame({"image": [*IMAGES, b"noise"]})
    scored = model.predict(frame, {"on_error": "report", "fpr": 0.9, "anomaly_map": True})
    assert scored["error"].notna().tolist() == [False] * 4 + [True]
    assert scored["anomaly_map"].notna().tolist() == [True] * 4 + [False]
    assert scored["is_anomaly"][2:4].all()


@pytest.mark.parametrize(
    ("data", "words"), [(b"noise", "Row 1: "), (b"", "Row 1: .*empty"), (b"@@@@", "Row 1: ")]
)
def test_a_client_s_mistake_is_a_400_that_names_the_row(saved, data, words):
    model = mlflow.pyfunc.load_model(str(saved))
    with pytest.raises(MlflowException, match=words) as caught:
        model.predict(pd.DataFrame({"image": [IMAGES[0], data]}))
    assert caught.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="fpr=2"):
        model.predict(pd.DataFrame({"image": IMAGES[:1]}), {"fpr": 2.0})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PNG, PNG),
        (bytearray(PNG), PNG),
        (memoryview(PNG), PNG),
        (base64.b64encode(PNG), PNG),
        (base64.b64encode(PNG).decode(), PNG),
        (base64.encodebytes(PNG), PNG),  # in lines
        (base64.encodebytes(PNG).decode().replace("\n", "\r\n"), PNG),
        (b"II*\0 and so on", b"II*\0 and so on"),
        (b"no base64!", b"no base64!"),  # the decoder says what is wrong
        (b"P5\n1 1\n255\n!", b"P5\n1 1\n255\n!"),
        ("é", b"?"),
        ("", b""),
        ("/etc/passwd", b"/etc/passwd"),  # no request names a file
        *((null, None) for null in (None, float("nan"), pd.NA, "None", b"None")),
        (7, 7),  # refused by its row, as any picture that is none
    ],
)
def test_bytes_come_raw_or_in_base64(given, expected):
    assert to_picture(given, files=False) == expected


def test_text_names_a_file_where_there_is_no_server(tmp_path, monkeypatch):
    (tmp_path / "abcd").write_bytes(PNG)  # that name is base64, too
    monkeypatch.chdir(tmp_path)
    for name in ("abcd", "a.png", "é", str(tmp_path / "abcd")):
        assert to_picture(name, files=True) == Path(name)
    coded = base64.b64encode(PNG).decode()
    for text, data in ((coded, PNG), ("efgh", b"y\xf8!"), ("", b""), ("a.png" * 999, None)):
        found = to_picture(text, files=True)
        assert found == (text.encode() if data is None else data)


@given(st.binary(max_size=200))
@example(b"\x04\xc0")  # in base64 it begins as a BMP does
def test_base64_of_anything_comes_back(data):
    for text in (base64.b64encode(data), base64.encodebytes(data).decode()):
        expected = None if text in ("None", b"None", "nan", b"nan") else data
        assert to_picture(text, files=False) == expected


def test_a_column_is_found_where_mlflow_puts_it(detector):
    model, expected = PyfuncModel(detector), detector.score(IMAGES)["fre"]
    for form in (
        pd.DataFrame({"id": range(4), "image": IMAGES}),
        pd.DataFrame({0: IMAGES}),  # a single column may have any name
        pd.Series(IMAGES),
        IMAGES,
        {"image": IMAGES},
    ):
        np.testing.assert_allclose(model.predict(form)["fre"], expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict({"image": IMAGES[0]})["fre"], expected[:1], rtol=1e-5)
    assert model.predict(pd.DataFrame({"image": []})).empty


@pytest.mark.parametrize(
    "given", [pd.DataFrame({"a": [PNG], "b": [PNG]}), {"picture": [PNG]}, 7, None]
)
def test_an_input_without_pictures_is_a_400(detector, given):
    with pytest.raises(MlflowException, match="no column 'image'") as caught:
        PyfuncModel(detector).predict(given)
    assert caught.value.get_http_status_code() == 400


def test_what_on_error_cannot_be_is_refused_before_any_work(detector, monkeypatch):
    extract = type(detector.extractor)
    monkeypatch.setattr(extract, "extract", lambda *_, **__: pytest.fail("it was scored"))
    with pytest.raises(MlflowException, match="on_error is neither raise nor report") as caught:
        PyfuncModel(detector).predict(frame(IMAGES), {"on_error": "ignore"})
    assert caught.value.get_http_status_code() == 400


def test_a_row_that_failed_is_null_in_json(detector, monkeypatch):
    monkeypatch.setattr(pyfunc_module._compat, "answers_in_json", lambda: True)
    found = PyfuncModel(detector).predict(frame([PNG, IMAGES[0]]), {"on_error": "report"})
    first, second = json.loads(json.dumps(found.to_dict("records"), allow_nan=False))
    assert first.pop("error").startswith("The")
    assert set(first.values()) == {None}
    assert second["error"] is None
    assert second["is_anomaly"] in (True, False)
    assert second["anomaly_score"] > 0


def test_a_row_that_failed_is_neither_good_nor_bad_in_pandas(detector):
    found = PyfuncModel(detector).predict(frame([PNG, IMAGES[0]]), {"on_error": "report"})
    assert found.dtypes.astype(str).to_dict() == COLUMNS
    assert found.drop(columns="error").isna().all(axis=1).tolist() == [True, False]
    with pytest.raises(ValueError, match="missing values"):
        found["is_anomaly"].to_numpy(bool)


def test_a_refusal_is_all_that_a_client_gets():
    error = RequestError("Row 3: no picture.", INVALID_PARAMETER_VALUE)
    assert json.loads(error.serialize_as_json()) == {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": "Row 3: no picture.",
    }


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("cpu", [1, 2]),  # a batch would keep a slow machine for long
        ("cuda", [1, 2, 4, 8, 12]),  # kernels are chosen by batch size
    ],
)
def test_warming_up_is_worth_its_time(detector, monkeypatch, kind, sizes):
    engine, asked = PyfuncModel(detector).engines.current, []
    monkeypatch.setattr(
        engine, "score", lambda images, anomaly_map: asked.append((len(images), anomaly_map))
    )
    extractor = SimpleNamespace(size=(64, 96), batch_size=12, device=SimpleNamespace(type=kind))
    engine.detector = SimpleNamespace(extractor=extractor)
    engine.warm_up()
    assert asked == [(n, n == 1) for n in sizes]


def test_a_batch_of_a_gpu_is_done_when_it_is_given_back(monkeypatch):
    done = []
    stream = SimpleNamespace(synchronize=lambda: done.append("synchronised"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    extractor = SimpleNamespace(
        device=torch.device("cuda:0"), run_batch=lambda pixels: done.append("ran") or [pixels]
    )
    pixels = torch.zeros(1, 3, 2, 2)
    assert engine_module.forward_of(extractor)(pixels) == [pixels]
    assert done == ["ran", "synchronised"]


def test_memory_of_a_gpu_is_given_back_when_it_runs_out(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    for words in ("CUDA out of memory.", "CUBLAS_STATUS_ALLOC_FAILED"):
        assert "Memory ran out" in refusal_module.refusal_of(RuntimeError(words)).sentence
    assert len(emptied) == 2
    other = refusal_module.refusal_of(ValueError("out of memory"))  # somebody's own words
    assert "Memory ran out" not in other.sentence
    assert len(emptied) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ImageError("Row 1: It is not a picture."), "picture"),
        (ConfigError("fpr=2 is outside (0, 1)."), "request"),
        (OverloadedError(), "overloaded"),
        (LateError(), "late"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA out of memory"), "memory"),
        (KeyError("x"), "internal"),
    ],
)
def test_every_error_is_counted_under_one_name(error, kind):
    assert kind_of(error) == kind
