"""A real ``mlflow models serve`` process, and what its clients see."""

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image

import dfm_mlflow
from dfm_mlflow import client
from dfm_mlflow.cli import cli
from dfm_mlflow.errors import ConfigError, ImageError, ServerError

from ..conftest import texture
from ..detectors import fit, pictures, png
from ..servers import PARQUET, parquet, post, serving

IMAGES = pictures(3, 7) + pictures(3, 8, defect=True)
CODED = [base64.b64encode(i).decode() for i in IMAGES]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "model"
    dfm_mlflow.save_model(fit(), path)
    return path


@pytest.fixture(scope="module")
def expected(saved):
    return dfm_mlflow.load_model(str(saved)).score(IMAGES)


@pytest.fixture(scope="module")
def log(saved):
    return saved.parent / "server.log"


@pytest.fixture(scope="module")
def server(saved, log):
    with serving(saved, log, batch_size=4, max_wait_ms=2000) as url:
        yield url


def requests_of(images):
    """The same pictures in every form that MLflow knows."""
    coded = [base64.b64encode(i).decode() for i in images]
    lines = [base64.encodebytes(i).decode() for i in images]
    csv = pd.DataFrame({"image": coded}).to_csv(index=False).encode()
    return {
        "dataframe_records": ({"dataframe_records": [{"image": c} for c in coded]},),
        "dataframe_split": (
            {"dataframe_split": {"columns": ["image"], "data": [[c] for c in coded]}},
        ),
        "instances": ({"instances": [{"image": c} for c in coded]},),
        "instances list": ({"instances": coded},),
        "inputs": ({"inputs": {"image": coded}},),
        "inputs list": ({"inputs": coded},),
        "inputs in lines": ({"inputs": {"image": lines}},),
        "records in lines": ({"dataframe_records": [{"image": c} for c in lines]},),
        "csv": (csv, "text/csv"),
        "parquet": (parquet(images), PARQUET),
        "parquet of base64": (parquet([c.encode() for c in coded]), PARQUET),
        "parquet of base64 text": (parquet(coded), PARQUET),
    }


@pytest.mark.integration
@pytest.mark.parametrize("n", [6, 1])
def test_every_form_gives_the_same_rows(server, expected, n):
    for name, request in requests_of(IMAGES[:n]).items():
        status, answer = post(server, *request)
        assert status == 200, (name, answer)
        table = pd.DataFrame(answer["predictions"])
        assert list(table) == list(expected)
        for column in ("anomaly_score", "fre", "nll"):
            np.testing.assert_allclose(table[column], expected[column][:n], rtol=1e-4, err_msg=name)
        assert table["p_value"].tolist() == expected["p_value"][:n].tolist()


@pytest.mark.integration
@pytest.mark.parametrize(("bad", "words"), [(b"noise" * 20, "not a picture"), (b"", "empty")])
def test_a_bad_picture_is_named_by_its_row_in_every_form(server, expected, bad, words):
    for name, request in requests_of([*IMAGES[:2], bad]).items():
        if name.startswith("instances") or (name == "csv" and not bad):
            continue  # the same as inputs to the model; an empty cell in pandas is missing
        status, answer = post(server, *request)
        assert status == 400, (name, answer)
        assert answer["message"].startswith("Row 2: "), name
        assert words in answer["message"], name
        assert "stack_trace" not in answer
        assert len(str(answer)) < 300, name
    body = {"inputs": {"image": [CODED[0], base64.b64encode(bad).decode(), CODED[4]]}}
    status, answer = post(server, body | {"params": {"on_error": "report"}})
    assert status == 200
    assert words in answer["predictions"][1]["error"]
    scores = [row["anomaly_score"] for row in answer["predictions"]]
    assert scores[1] is None
    np.testing.assert_allclose([scores[0], scores[2]], expected["anomaly_score"][[0, 4]], rtol=1e-4)


@pytest.mark.integration
def test_a_null_is_named_by_its_row_in_every_form_that_carries_one(server, expected):
    pair = [CODED[0], None]
    for form in (
        {"instances": [{"image": c} for c in pair]},
        {"instances": pair},
        {"inputs": {"image": pair}},
        {"inputs": pair},
    ):
        status, answer = post(server, form | {"params": {"on_error": "report"}})
        assert status == 200, answer
        first, second = answer["predictions"]
        assert first["fre"] == pytest.approx(expected["fre"][0], rel=1e-4)
        assert "no picture (null)" in second.pop("error")
        assert set(second.values()) == {None}
    csv = b"image\n" + CODED[0].encode() + b'\n""\n'
    for request in ((parquet([IMAGES[0], None]), PARQUET), (csv, "text/csv"), (form,)):
        status, answer = post(server, *request)  # parquet and CSV carry no parameters
        assert status == 400
        assert answer["message"].startswith("Row 1: The row holds no picture (null)")
    # MLflow refuses a null of these two by itself, and lets an empty text pass
    for nothing, status in ((None, 400), ("", 200)):
        for form in (
            {"dataframe_records": [{"image": CODED[0]}, {"image": nothing}]},
            {"dataframe_split": {"columns": ["image"], "data": [[CODED[0]], [nothing]]}},
        ):
            found, answer = post(server, form | {"params": {"on_error": "report"}})
            assert found == status, answer
            if status == 200:
                assert "empty (0 bytes)" in answer["predictions"][1]["error"]
                assert answer["predictions"][1]["is_anomaly"] is None


@pytest.mark.integration
def test_parameters_that_no_model_knows_are_dropped_by_mlflow(server, expected):
    body = {"instances": CODED[:1], "params": {"threshold": 3, "fpr": 0.2}}
    status, answer = post(server, body)
    assert status == 200
    assert answer["predictions"][0]["fre"] == pytest.approx(expected["fre"][0], rel=1e-4)


@pytest.mark.integration
def test_no_rows_and_no_column(server):
    assert post(server, {"dataframe_split": {"columns": ["image"], "data": []}}) == (
        200,
        {"predictions": []},
    )
    assert post(server, {"dataframe_records": [{"image": CODED[0]}], "params": {"fpr": 2.0}})[1][
        "message"
    ].startswith("fpr=2.0 is outside")


@pytest.mark.integration
def test_a_request_that_would_be_thousands_of_times_its_size_is_refused(server, expected):
    large = b"\x89PNG" + bytes(4_000_000)
    for options in ({"compression": "zstd"}, {"compression": "snappy"}):
        body = io.BytesIO()
        frame = pd.DataFrame({"image": [large] * 40})  # of 160 MB
        frame.to_parquet(body, use_dictionary=True, dictionary_pagesize_limit=2**30, **options)
        status, answer = post(server, body.getvalue(), PARQUET)
        assert status == 400, answer
        assert "Traceback" not in str(answer)
        assert len(answer["message"]) < 200
    status, answer = post(server, {"instances": [{"image": ""}] * 1001})
    assert status == 400
    assert "more than the limit of 1000" in answer["message"]
    status, answer = post(server, {"inputs": {"image": CODED}, "params": {"on_error": "s" * 999}})
    assert status == 400
    assert "sss" not in answer["message"]
    assert post(server, parquet(IMAGES), PARQUET)[0] == 200


@pytest.mark.integration
def test_sixty_four_clients_get_their_own_answers(server, expected):
    def ask(i):
        status, answer = post(server, *requests_of([IMAGES[i % 6]])["parquet" if i % 2 else "csv"])
        return status, answer["predictions"][0]["anomaly_score"]

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(192)))
    assert {status for status, _ in answers} == {200}
    wanted = [expected["anomaly_score"][i % 6] for i in range(192)]
    np.testing.assert_allclose([score for _, score in answers], wanted, rtol=1e-4)


@pytest.mark.integration
def test_a_lone_request_does_not_wait(server):
    body = parquet(IMAGES[:1])
    start = time.perf_counter()
    for _ in range(5):
        assert post(server, body, PARQUET)[0] == 200
    assert time.perf_counter() - start < 5 * 2  # max_wait_ms is 2000


@pytest.mark.integration
def test_the_log_says_once_what_is_served(server, log):
    lines = [line for line in log.read_text().splitlines() if "dfm model on" in line]
    assert len(lines) == 1
    assert "on cpu in fp32, batches of 4" in lines[0]


@pytest.mark.integration
def test_the_client_gets_what_the_model_says(server, expected, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(IMAGES[1])
    array = texture(np.random.default_rng(3))
    table = client.score(server, [IMAGES[0], path, str(path), array], request_bytes=1)
    assert table["anomaly_score"].dtype == "float64"
    assert table["is_anomaly"].dtype == "boolean"
    np.testing.assert_allclose(
        table["anomaly_score"][:3], expected["anomaly_score"][[0, 1, 1]], rtol=1e-4
    )
    mixed = [IMAGES[0], b"noise", tmp_path / "none.png", IMAGES[4]]
    table = client.score(server + "/", mixed, on_error="report", anomaly_map=True, fpr=0.9)
    assert table["error"].notna().tolist() == [False, True, True, False]
    assert base64.b64decode(table["anomaly_map"][3]).startswith(b"\x89PNG")
    assert table["is_anomaly"].isna().tolist() == [False, True, True, False]
    assert table["is_anomaly"][3]
    bgr = np.repeat(array[:, :, :1], 3, axis=2)[..., ::-1]
    same = [bgr, bgr[:, :, 0], memoryview(png(bgr)), Image.fromarray(bgr)]
    assert client.score(server, same)["fre"].nunique() == 1
    with pytest.raises(ServerError, match=r"^Row 2: The bytes are not") as caught:
        client.score(server, [IMAGES[0], IMAGES[1], b"noise"], request_bytes=len(IMAGES[0]))
    assert caught.value.status == 400
    with pytest.raises(ImageError, match=r"Row 0 \(.*none.png\): The file cannot be read"):
        client.score(server, [tmp_path / "none.png"])


@pytest.mark.integration
def test_the_command_line_scores_a_folder(server, expected, tmp_path):
    for i, image in enumerate(IMAGES):
        (tmp_path / f"{i}.png").write_bytes(image)
    run = CliRunner().invoke
    arguments = ["score", "--url", server, str(tmp_path)]
    printed = run(cli, arguments, catch_exceptions=False)
    assert printed.exit_code == 0
    assert "p-value" in printed.output
    for name, read in {"a.parquet": pd.read_parquet, "a.csv": pd.read_csv}.items():
        output = str(tmp_path / name)
        said = run(cli, [*arguments, "--output", output, "-q"], catch_exceptions=False).output
        assert said.splitlines()[-1].endswith(f"0 unreadable; wrote {output}")
        table = read(output)
        assert list(table) == ["path", *expected]
        assert table["path"][5] == str(tmp_path / "5.png")
        np.testing.assert_allclose(table["anomaly_score"], expected["anomaly_score"], rtol=1e-4)


@pytest.mark.integration
def test_more_than_the_queue_is_refused_and_a_patient_client_is_served(saved, tmp_path):
    large, small = parquet(IMAGES * 20), parquet(IMAGES[:1])
    with serving(saved, tmp_path / "log", queue_size=1) as url:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: post(url, large, PARQUET), range(12)))
            refused = [answer for status, answer in answers if status == 503]
            assert len(refused) >= 6
            assert len(refused) < 12
            assert {status for status, _ in answers} == {200, 503}
            assert "send this one again" in refused[0]["message"]
            assert "stack_trace" not in refused[0]
            patient = pool.map(lambda i: client.score(url, [i], retries=30), IMAGES)
            assert [len(table) for table in patient] == [1] * 6
        assert post(url, small, PARQUET)[0] == 200


def test_what_nobody_expected_is_a_500_with_a_sentence(saved, monkeypatch, caplog):
    model = mlflow.pyfunc.load_model(str(saved))
    monkeypatch.setattr(
        type(model.get_raw_model()), "score", lambda *_, **__: {}["no such key"], raising=True
    )
    body = json.dumps(requests_of(IMAGES[:1])["inputs"][0])
    schema = model.metadata.get_input_schema()
    with pytest.raises(MlflowException) as caught:
        scoring_server.invocations(body, "application/json", model, schema)
    answer = json.loads(caught.value.serialize_as_json())
    assert caught.value.get_http_status_code() == 500
    assert answer == {
        "error_code": "INTERNAL_ERROR",
        "message": "The server failed at this request (KeyError): its log says more.",
    }
    assert "no such key" in caplog.text


def test_a_device_that_is_not_there_stops_the_load(saved, monkeypatch):
    with pytest.raises(dfm_mlflow.DfmError, match="device=cuda:99 is requested"):
        mlflow.pyfunc.load_model(str(saved), model_config={"device": "cuda:99"})
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cuda:99")
    with pytest.raises(dfm_mlflow.DfmError, match="device=cuda:99 is requested"):
        mlflow.pyfunc.load_model(str(saved))
    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", '{"device": "cpu", "batch_size": 3}')
    model = mlflow.pyfunc.load_model(str(saved)).get_raw_model()
    assert (model.extractor.device.type, model.extractor.batch_size) == ("cpu", 3)


@pytest.mark.parametrize("config", [{"batch_size": 0}, {"queue_size": -1}, {"threads": "many"}])
def test_a_refused_setting_stops_the_load_with_a_sentence(saved, config):
    ((key, value),) = config.items()
    with pytest.raises(ConfigError, match=rf"^model_config {key}={value!r} is refused: .*\.$"):
        mlflow.pyfunc.load_model(str(saved), model_config=config)
