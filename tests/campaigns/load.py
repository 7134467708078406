"""A live server under many clients, some of which send garbage, send slowly or go away.

    python -m tests.campaigns.load --seconds 300 --clients 64 --garbage 0.05

Every good request must get its own right answer or a 503, and most of them an answer; ``/ping``
must answer within a second, memory must stay flat, and SIGTERM must end with every request answered
that the server had taken.
"""

import argparse
import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..servers import PARQUET, parquet, serving
from .mutation import picture

MOST_GROWTH = 0.05  # of memory, from the second quarter to the last
MOST_PING = 1.0  # seconds
_TIMEOUT = 120
KINDS = (
    "picture",
    "noise",
    "no json",
    "huge length",
    "wrong type",
    "goes away",
    "goes away later",
    "method",
)


@dataclass
class Tally:
    """What the clients saw."""

    statuses: Counter = field(default_factory=Counter)  # of good requests
    garbage: Counter = field(default_factory=Counter)  # of the others, by kind and status
    pings: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    ended: Counter = field(default_factory=Counter)  # requests under way at SIGTERM
    faults: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Growth of memory from the second quarter to the last."""
        n = len(self.megabytes) // 4
        if not n:
            return 0.0
        return float(np.median(self.megabytes[-n:]) / np.median(self.megabytes[n : 2 * n])) - 1

    def judge(self) -> list[str]:
        """Give everything that is not as it should be."""
        wrong = list(self.faults)
        if set(self.statuses) - {200, 503}:
            wrong.append(f"statuses of good requests: {dict(self.statuses)}")
        if self.statuses[200] < self.statuses[503]:
            wrong.append(f"{self.statuses[503]} good requests were refused, more than answered")
        if set(self.ended) - {200, 503}:
            wrong.append(f"SIGTERM cut requests off: {dict(self.ended)}")
        if max(self.pings, default=0) > MOST_PING:
            late = [i for i, ping in enumerate(self.pings) if ping > MOST_PING]
            wrong.append(
                f"{len(late)} of {len(self.pings)} /ping took up to {max(self.pings):.2f} s, the "
                f"first of them number {late[0]}"
            )
        if self.growth > MOST_GROWTH:
            wrong.append(f"memory grew by {self.growth:.1%}")
        return wrong

    def __str__(self) -> str:
        memory = self.megabytes or [0]
        pings = self.pings or [0]
        return (
            f"{sum(self.statuses.values())} good requests {dict(self.statuses)}, "
            f"{sum(self.garbage.values())} others; memory {memory[0]:.0f} MB at first, "
            f"{max(memory):.0f} at most, {memory[-1]:.0f} at last, growth {self.growth:.1%}; "
            f"{len(pings)} pings, median {np.median(pings) * 1000:.0f} ms, at most "
            f"{max(pings) * 1000:.0f} ms"
        )


class Campaign:
    """Clients of one server.

    Parameters
    ----------
    url : str
    pid : int
        Of the server, whose memory and that of all below it is watched.
    images : list of bytes
        Whole pictures.
    scores : list of float
        Theirs.
    seed : int
    """

    def __init__(self, url: str, pid: int, images: list[bytes], scores: list[float], seed: int):
        self.host, self.port = "127.0.0.1", int(url.rpartition(":")[2])
        self.pid, self.images, self.scores, self.seed = pid, images, scores, seed
        self.tally, self._lock, self._over = Tally(), threading.Lock(), threading.Event()

    def run(self, seconds: float, clients: int, garbage: float, slow: int) -> Tally:
        """Let so many clients send for so long, and some more send slowly."""
        watchers = [threading.Thread(target=f) for f in (self._ping, self._weigh)]
        watchers += [threading.Thread(target=self._send_slowly) for _ in range(slow)]
        watchers += [threading.Thread(target=self._leave_work)]
        for watcher in watchers:
            watcher.start()
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(clients) as pool:
            futures = [pool.submit(self._client, i, end, garbage) for i in range(clients)]
            for future in futures:
                future.result()
        self._over.set()
        for watcher in watchers:
            watcher.join()
        return self.tally

    # -- good requests -----------------------------------------------------------------------------

    def body(self, i: int, form: str) -> tuple[bytes, str]:
        if form == "parquet":
            return parquet([self.images[i]]), PARQUET
        coded = base64.b64encode(self.images[i]).decode()
        return json.dumps({"inputs": {"image": [coded]}}).encode(), "application/json"

    def _client(self, number: int, end: float, garbage: float) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        bodies = {
            (i, form): self.body(i, form)
            for i in range(len(self.images))
            for form in ("parquet", "json")
        }
        connection = self._connect()
        n = 0
        while time.monotonic() < end:
            n += 1
            if rng.random() < garbage:
                kind = rng.choice(KINDS)
                status = self._disturb(rng, kind, number * 100_000 + n)
                with self._lock:
                    self.tally.garbage[kind, status] += 1
                connection.close()  # the server closes one that was idle for long
                connection = self._connect()
                continue
            which = rng.randrange(len(self.images)), rng.choice(("parquet", "json"))
            connection = self._ask(connection, which[0], *bodies[which])
        connection.close()

    def _ask(self, connection, i: int, body: bytes, kind: str):
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": kind})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._count("lost", f"picture {i}: {error!r}")
            connection.close()
            return self._connect()
        fault = ""
        if status == 200:
            score = json.loads(content)["predictions"][0]["anomaly_score"]
            if not np.isclose(score, self.scores[i], rtol=1e-4):
                fault = f"picture {i} got the score {score} and not {self.scores[i]}"
        elif status == 503:
            time.sleep(0.05)
        else:
            fault = f"picture {i}: {status} {content[:200]!r}"
        self._count(status, fault)
        return connection

    def _count(self, status, fault: str) -> None:
        with self._lock:
            self.tally.statuses[status] += 1
            if fault:
                self.tally.faults.append(fault)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT)

    # -- garbage -----------------------------------------------------------------------------------

    def _disturb(self, rng: random.Random, kind: str, number: int) -> object:
        connection = self._connect()
        try:
            if kind in ("goes away", "goes away later"):
                return self._go_away(rng, kind)
            if kind == "picture":
                body, mime = parquet([picture(self.seed, number)[1]]), PARQUET
            elif kind == "noise":
                body, mime = rng.randbytes(rng.randrange(5000)), PARQUET
            elif kind == "no json":
                whole = self.body(0, "json")[0]
                body, mime = whole[: rng.randrange(len(whole))], "application/json"
            elif kind == "wrong type":
                mime = rng.choice(("text/plain", "image/png", "x" * 99))
                body = self.body(0, "json")[0]
            else:
                body, mime = b"{}", "application/json"
            headers = {"Content-Type": mime}
            if kind == "huge length":
                return self._promise_much()
            method = rng.choice(("GET", "PUT", "DELETE")) if kind == "method" else "POST"
            connection.request(method, "/invocations", body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    def _go_away(self, rng: random.Random, kind: str) -> str:
        body, mime = self.body(0, "parquet")
        with socket.create_connection((self.host, self.port), timeout=_TIMEOUT) as sock:
            head = (
                f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: {mime}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            whole = head.encode() + body
            sock.sendall(whole if kind == "goes away later" else whole[: rng.randrange(len(whole))])
            time.sleep(rng.uniform(0, 0.1))
        return "left"

    def _promise_much(self) -> str:
        with socket.create_connection((self.host, self.port), timeout=_TIMEOUT) as sock:
            sock.sendall(
                b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                b"\r\nContent-Length: 999999999999\r\n\r\n{"
            )
            time.sleep(0.1)
        return "left"

    def _send_slowly(self) -> None:
        """Send a whole request, a hundredth a second, over and over."""
        body, mime = self.body(0, "parquet")
        head = (
            f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: {mime}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        whole = head.encode() + body
        step = len(whole) // 100 + 1
        while not self._over.is_set():
            with socket.create_connection((self.host, self.port), timeout=_TIMEOUT) as sock:
                for place in range(0, len(whole), step):
                    if self._over.wait(1):
                        return
                    try:
                        sock.sendall(whole[place : place + step])
                    except OSError:
                        break
                with self._lock:
                    self.tally.garbage["slow", "sent"] += 1

    def _leave_work(self) -> None:
        """Ask for the scores of large pictures and go away, over and over."""
        large = io.BytesIO()
        Image.new("L", (4000, 3000), 90).save(large, "PNG")
        body = parquet([large.getvalue()] * 16)
        head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: {PARQUET}\r\n"
        while not self._over.wait(5):
            with socket.create_connection((self.host, self.port), timeout=_TIMEOUT) as sock:
                sock.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
                self._over.wait(0.5)
            with self._lock:
                self.tally.garbage["large", "left"] += 1

    # -- watching ----------------------------------------------------------------------------------

    def _ping(self) -> None:
        while not self._over.wait(0.5):
            begin = time.monotonic()
            try:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
                connection.request("GET", "/ping")
                if connection.getresponse().status != 200:
                    self.tally.faults.append("/ping is not 200")
                connection.close()
            except OSError as error:
                self.tally.faults.append(f"/ping: {error!r}")
            self.tally.pings.append(time.monotonic() - begin)

    def _weigh(self) -> None:
        while not self._over.wait(1):
            self.tally.megabytes.append(megabytes(self.pid))


def megabytes(pid: int) -> float:
    """Resident memory of a process and all below it."""
    total, waiting = 0, [pid]
    while waiting:
        pid = waiting.pop()
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def end_in_flight(campaign: Campaign, process, requests: int) -> Counter:
    """Send SIGTERM while requests are being answered; gives what their clients saw."""
    body, kind = parquet(campaign.images * 4), PARQUET
    seen, sent = Counter(), threading.Barrier(requests + 1)

    def ask() -> None:
        connection = campaign._connect()
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": kind})
            sent.wait(_TIMEOUT)
            answer = connection.getresponse()
            result, rows = answer.status, json.loads(answer.read()).get("predictions", [])
            found = [row["anomaly_score"] for row in rows]
            if result == 200 and not np.allclose(found, campaign.scores * 4, rtol=1e-4):
                result = "wrong"
        except (OSError, http.client.HTTPException, ValueError) as error:
            result = type(error).__name__
        finally:
            connection.close()
        with campaign._lock:
            seen[result] += 1

    threads = [threading.Thread(target=ask) for _ in range(requests)]
    for thread in threads:
        thread.start()
    sent.wait(_TIMEOUT)
    time.sleep(0.5)  # until the server has read them
    os.kill(process.pid, signal.SIGTERM)  # as `kill` does: the process below it ends with it
    for thread in threads:
        thread.join(_TIMEOUT)
    process.wait(_TIMEOUT)
    return seen


def run(
    folder: Path, *, seconds: float, clients: int, garbage: float, slow: int, seed: int, ended: int
) -> Tally:
    """Serve a small detector, load it, and end it."""
    import dfm_mlflow

    from ..detectors import fit, pictures

    detector = fit({"stripes": pictures(20)})
    dfm_mlflow.save_model(detector, folder / "model")
    images = pictures(4, 7) + pictures(4, 8, defect=True)
    scores = detector.score(images)["anomaly_score"].tolist()
    with serving(folder / "model", folder / "server.log") as server:
        campaign = Campaign(server, server.process.pid, images, scores, seed)
        tally = campaign.run(seconds, clients, garbage, slow)
        tally.ended = end_in_flight(campaign, server.process, ended)
        return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--garbage", type=float, default=0.05)
    parser.add_argument("--slow", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tally = run(
            Path(name),
            seconds=given.seconds,
            clients=given.clients,
            garbage=given.garbage,
            slow=given.slow,
            seed=given.seed,
            ended=16,
        )
    garbage = {
        f"{kind}: {status}": n for (kind, status), n in sorted(tally.garbage.items(), key=str)
    }
    wrong = tally.judge()
    print(
        tally,
        f"others: {garbage}",
        f"SIGTERM with 16 requests under way: {dict(tally.ended)}",
        *wrong,
        sep="\n",
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
