import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dfm_mlflow.serving.monitor.webhook import Webhook


@contextmanager
def listener(statuses):
    """Answers with these one after another, then 200; gives its port and what it was sent."""
    taken, waiting = [], list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.path, json.loads(body)))
            status = waiting.pop(0) if waiting else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port, taken
        server.shutdown()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_message_is_sent_again_until_it_is_taken(caplog):
    with listener([500, 302, 404]) as (port, taken):
        hook = Webhook(f"http://127.0.0.1:{port}/hook/s3cret?token=s3cret", (0.01,) * 5)
        hook.send({"alarm": "drift"})
        until(lambda: hook.counts["sent"] == 1)
        hook.close(5)
    assert taken == [("/hook/s3cret?token=s3cret", {"alarm": "drift"})] * 4
    assert "status 302" in caplog.text  # a redirect is not followed
    assert "127.0.0.1" in caplog.text
    assert "s3cret" not in caplog.text


def test_one_that_nobody_takes_is_given_up_and_counted(caplog):
    hook = Webhook("http://127.0.0.1:1/s3cret", (0.01,) * 3)
    hook.send({})
    until(lambda: hook.counts["failed"] == 1)
    assert caplog.text.count("could not be posted") == 4
    assert "it is not tried again" in caplog.text
    assert "s3cret" not in caplog.text
    hook.close(5)


def test_the_end_tries_once_more_and_does_not_wait():
    with listener([500]) as (port, taken):
        hook = Webhook(f"http://127.0.0.1:{port}/", (100.0,))
        hook.send({})
        until(lambda: len(taken) == 1)
        begun = time.monotonic()
        hook.close(5)
        assert time.monotonic() - begun < 5
        assert hook.counts == {"sent": 1}


def test_a_host_that_hangs_holds_nobody_up(monkeypatch):
    hook = Webhook("http://127.0.0.1:1/", (100.0,))
    begun = time.monotonic()
    for _ in range(150):
        hook.send({})
    assert time.monotonic() - begun < 1
    assert hook.counts["dropped"] > 40


@pytest.mark.parametrize("address", ["https://example.com", "https://example.com:8443/a?b=c"])
def test_https_is_checked(address):
    import ssl

    hook = Webhook(address)
    assert hook.host == "example.com"
    context = hook._connection()._context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    hook.close(0)
