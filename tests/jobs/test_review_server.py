import http.client
import json
import threading

import pytest

from dfm_mlflow.data.verdicts import PictureVerdict, read_verdicts
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.jobs.review_server import ReviewServer

A = "a" * 64
KNOWN = {A: PictureVerdict(A, "unsure", "/p/a.png", category="caps", model="models:/m/1")}


@pytest.fixture
def server(tmp_path):
    with ReviewServer(lambda token: f"<html>{token}", KNOWN, tmp_path / "v.csv") as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, method, path="/", body=None, **headers):
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    given = {"Host": f"127.0.0.1:{port}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def send(server, token=None, **said):
    body = json.dumps({"sha256": A, "verdict": "good", **said})
    return ask(server, "POST", "/verdicts", body, X_Review_Token=token or server.token)


def test_a_verdict_is_in_the_file_when_it_is_called_saved(server):
    status, page = ask(server, "GET")
    assert (status, page) == (200, f"<html>{server.token}")
    assert send(server, who="ann", when="2026-11-27T03:00:00Z") == (200, "saved")
    assert send(server, verdict="bad", defect="big, red", who="ann")[0] == 200
    (said,) = read_verdicts(str(server.path))
    assert said == PictureVerdict(
        A, "bad", "/p/a.png", "big, red", "caps", "ann", "", "models:/m/1"
    )
    assert len(server.path.read_text().splitlines()) == 3


def test_what_a_page_of_somebody_else_sends_is_refused(server):
    port = server.server_address[1]
    assert send(server, token="guessed")[0] == 403
    assert ask(server, "GET", Host=f"evil.example:{port}")[0] == 403
    assert ask(server, "GET", Host=f"localhost:{port}")[0] == 200
    assert ask(server, "GET", "/etc/passwd")[0] == 404
    assert not server.path.exists()
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"sha256": "b" * 64}, "not on the page"),
        ({"verdict": "fine"}, "one of good, bad, unsure"),
        ({"verdict": "bad", "defect": "ok"}, "may mean good"),
        ({"verdict": "good", "defect": "hole"}, "may mean good"),
        ({"verdict": "bad", "defect": "a\nb"}, "in one line"),
        ({"who": "x" * 500}, "at most 200"),
        ({"path": "/etc/passwd", "verdict": ""}, "one of good"),
    ],
)
def test_what_is_no_verdict_is_refused_in_a_sentence(server, said, words):
    status, text = send(server, **said)
    assert status == 400
    assert words in text
    assert not server.path.exists()


@pytest.mark.parametrize("body", ["", "no json", "[1]", "[" * 5000, "x" * 20_000])
def test_garbage_is_refused(server, body):
    status, _ = ask(server, "POST", "/verdicts", body, X_Review_Token=server.token)
    assert status == 400


def test_a_file_that_is_no_list_of_verdicts_is_told_of_and_kept(server):
    server.path.write_text("mine,alone\n1,2\n")
    status, text = send(server)
    assert (status, "lacks the column sha256" in text) == (400, True)
    assert server.path.read_text() == "mine,alone\n1,2\n"


def test_a_port_that_is_taken_is_one_sentence(server, tmp_path):
    port = server.server_address[1]
    with pytest.raises(ConfigError, match=f"port={port} cannot be used"):
        ReviewServer(lambda token: "", {}, tmp_path / "v.csv", port)
