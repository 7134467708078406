"""The client against a server that answers as it is told."""

import base64
import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfm_mlflow import client
from dfm_mlflow.columns import COLUMNS
from dfm_mlflow.errors import ConfigError, DataError, ImageError, ServerError
from dfm_mlflow.storage.score_table import ScoreTable

ROW = {
    "anomaly_score": 1.0,
    "p_value": 0.5,
    "is_anomaly": False,
    "predicted_class": "a",
    "fre": 1.0,
    "nll": 2.0,
    "anomaly_map": None,
    "error": None,
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        script = self.server.script
        step = script.pop(0) if script else None
        if step == "drop":
            self.connection.close()
            return
        if step == "sleep":
            self.server.wake.wait(10)
        status, answer = step if isinstance(step, tuple) else (200, None)
        if answer is None:
            n = len(images_of(self.headers, body))
            answer = {"predictions": [ROW | {"fre": float(len(self.server.seen))}] * n}
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def images_of(headers, body):
    if "parquet" in headers["Content-Type"]:
        return pd.read_parquet(io.BytesIO(body))["image"].tolist()
    return [r["image"] for r in json.loads(body)["dataframe_records"]]


@pytest.fixture
def server(monkeypatch):
    # not in the module `time` itself: other threads sleep, too
    pause = SimpleNamespace(sleep=lambda seconds: server.pauses.append(seconds))
    monkeypatch.setattr(client, "time", pause)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.script, server.seen, server.pauses, server.wake = [], [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.wake.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_parquet_goes_out_and_a_typed_table_comes_back(server):
    table = client.score(server.url, [b"one", b"two"], headers={"Authorization": "Bearer x"})
    ((path, headers, body),) = server.seen
    assert path == "/invocations"
    assert headers["Authorization"] == "Bearer x"
    assert images_of(headers, body) == [b"one", b"two"]
    assert table.dtypes.astype(str).to_dict() == COLUMNS
    assert table["error"].tolist() == [None, None]


def test_parameters_travel_in_json(server):
    client.score(f"{server.url}/line3/invocations/", [b"one"], fpr=0.1, anomaly_map=True)
    ((path, headers, body),) = server.seen
    assert path == "/line3/invocations"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "dataframe_records": [{"image": "b25l"}],
        "params": {"fpr": 0.1, "anomaly_map": True},
    }


def test_an_array_is_sent_as_png(server):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    client.score(server.url, [array])
    ((_, headers, body),) = server.seen
    with Image.open(io.BytesIO(images_of(headers, body)[0])) as sent:
        np.testing.assert_array_equal(np.asarray(sent), array)
    with pytest.raises(ImageError, match=r"Row 1: An array of float64 and shape \(5, 7, 3\)"):
        client.score(server.url, [array, array / 255])


def test_many_pictures_are_several_requests(server):
    table = client.score(server.url, [bytes(10)] * 7, request_bytes=35)
    assert [len(images_of(h, b)) for _, h, b in server.seen] == [3, 3, 1]
    assert table["fre"].tolist() == [1, 1, 1, 2, 2, 2, 3]
    client.score(server.url, [b"x"] * 100)
    assert [len(images_of(h, b)) for _, h, b in server.seen[3:]] == [64, 36]
    assert len(client.score(server.url, [])) == 0


def test_overload_and_lost_connections_are_tried_again(server):
    server.script = [(503, {"message": "busy"}), "drop", (503, "<html>"), None]
    assert len(client.score(server.url, [b"one"])) == 1
    assert len(server.seen) == 4
    assert len(server.pauses) == 3
    assert all(0.1 * 2**i / 2 <= p <= 0.1 * 2**i for i, p in enumerate(server.pauses, 1))


def test_patience_ends_with_the_server_s_sentence(server):
    server.script = [(503, {"message": "The server is full."})] * 9
    with pytest.raises(ServerError, match=r"^The server is full.$") as caught:
        client.score(server.url, [b"one"], retries=2)
    assert caught.value.status == 503
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, {"message": "Row 1: The picture is empty."}, r"^Row 3: The picture is empty\.$"),
        (500, {"message": "It failed."}, r"^It failed\.$"),
        (504, "Request processing time exceeded limit", r"answered 504: Request processing time"),
        (413, "<html>" + "x" * 500, r"answered 413: Request Entity Too Large|Content Too Large"),
        (200, {"predictions": []}, "one row for each of 2 pictures"),
        (200, "hello", "serves a dfm model"),
    ],
)
def test_a_refusal_is_one_sentence(server, status, body, words):
    server.script = [None, (status, body)]
    with pytest.raises(ServerError, match=words):
        client.score(server.url, [bytes(10)] * 4, request_bytes=20)
    assert server.pauses == []


def test_a_file_is_named(server, tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    server.script = [(400, {"message": "Row 0: The bytes are not a picture."})]
    with pytest.raises(ServerError, match=r"^Row 0 \(.*a\.png\): The bytes are not"):
        client.score(server.url, [tmp_path / "a.png"])


def test_a_slow_server_is_not_asked_twice(server):
    server.script = ["sleep"]
    with pytest.raises(ServerError, match="did not answer within"):
        client.score(server.url, [b"one"], timeout=0.2)
    assert server.pauses == []


def test_nobody_there(server):
    with pytest.raises(ServerError, match=r"127.0.0.1:1 cannot be reached .*refused") as caught:
        client.score("http://127.0.0.1:1", [b"one"], retries=1)
    assert caught.value.status is None
    assert len(server.pauses) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:5000", "ftp://host", "http://", "file:///etc/passwd"])
def test_an_url_is_checked(url):
    with pytest.raises(ConfigError, match="is not a server's"):
        client.score(url, [b"one"])


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="give a list"):
        client.score("http://host", b"one")
    with pytest.raises(ConfigError, match="on_error is neither raise nor report"):
        client.score("http://host", [b"one"], on_error="ignore")
    with pytest.raises(DataError, match="is not there"):
        client.find_pictures([str(tmp_path / "none")])
    with pytest.raises(DataError, match="no picture"):
        client.find_pictures([str(tmp_path)])


def test_files_go_into_a_table_in_steps_with_maps_drawn(server, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_ROWS", 2)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.new("RGB", (20, 10), "grey").save(path)
    buffer = io.BytesIO()
    Image.new("L", (20, 10), 200).save(buffer, format="PNG")
    answer = {"predictions": [ROW | {"anomaly_map": base64.b64encode(buffer.getvalue()).decode()}]}
    server.script = [(200, {"predictions": answer["predictions"] * 2}), (200, answer)]
    table = ScoreTable(str(tmp_path / "scores.csv"))
    folder = tmp_path.parent / f"{tmp_path.name}-overlays"
    client.score_into(server.url, paths, table, overlays=str(folder), fpr=0.3)
    assert len(server.seen) == 2
    assert json.loads(server.seen[0][2])["params"] == {"fpr": 0.3, "anomaly_map": True}
    read = pd.read_csv(tmp_path / "scores.csv")
    assert list(read["path"]) == list(map(str, paths))
    assert read["anomaly_map"].isna().all()
    assert sorted(p.name for p in folder.iterdir()) == ["0.png.png", "1.png.png", "2.png.png"]
    assert table.summary() == f"3 pictures, 0 anomalous, 0 unreadable; wrote {table.output}"


def test_it_is_light():
    code = (
        "import sys, dfm_mlflow; dfm_mlflow.client.score; "
        "print({'torch', 'mlflow', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
