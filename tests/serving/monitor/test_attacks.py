"""What a factory does to a log: full disks, dead stores, garbage; every loss is counted."""

import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.serving.monitor.channel import Channel
from dfm_mlflow.serving.monitor.writer import LAST_SECONDS

from ...detectors import pictures
from .test_channel import until
from .test_monitor import banded, frame, served  # noqa: F401  # fixtures
from .test_writer import MODEL, rows

pytestmark = pytest.mark.integration  # whole jobs, one after the other


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=False)


def fill(disk):
    """Leave no byte; gives the file that took them."""
    junk = disk / "junk"
    with junk.open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return junk


def channel_to(address, extra=(), **settings):
    heard = []
    given = ServingSettings(log_to=str(address), **settings)
    channel = Channel(given, 1, MODEL, heard.append, {"seconds": 0.2, **dict(extra)})
    until(lambda: heard)
    return channel, heard


def end_of(channel):
    channel.close(100)
    assert channel._process.returncode == 0


def test_a_full_disk_loses_nothing_that_fits_later_and_counts_the_rest(small_disk, capfd):
    channel, heard = channel_to(small_disk / "log", keep="flagged")
    channel.hand_over(rows(50), 50)
    until(lambda: heard[-1]["written"].get("rows") == 50)
    junk = fill(small_disk)
    for i in range(20):
        channel.hand_over(rows(50, first=50 * i + 50), 50)
    picture = b"\x89PNG" + os.urandom(2000)
    channel.hand_over(rows(1, first=2000, pictures=["ab" * 32]), 1, [picture])
    time.sleep(1.5)
    assert heard[-1]["written"] == {"rows": 50}
    assert not any(heard[-1]["dropped"].values())
    junk.unlink()
    until(lambda: heard[-1]["written"].get("rows") == 1051)
    end_of(channel)
    assert len(pd.read_parquet(small_disk / "log/scores")) == 1051
    assert (small_disk / f"log/kept/ab/{'ab' * 32}.png").read_bytes() == picture
    text = capfd.readouterr().err
    assert text.count("The log cannot be written now, and its rows wait") == 1
    assert "The log can be written again" in text


def test_a_disk_that_stays_full_costs_the_rows_and_says_so_once(small_disk, capfd):
    channel, heard = channel_to(small_disk / "log")
    fill(small_disk)
    for i in range(150):  # more than waits for a target
        channel.hand_over(rows(500, first=500 * i), 500)
    until(lambda: heard[-1]["received"] + channel.dropped["writer"] == 75_000)
    until(lambda: heard[-1]["dropped"].get("target", 0) + channel.dropped["writer"] >= 25_000)
    end_of(channel)
    text = capfd.readouterr().err
    assert text.count("The log cannot be written now, and its rows wait") == 1
    n = 75_000 - channel.dropped["writer"] - heard[-1]["dropped"]["target"]
    assert f"{n} rows and pictures are lost" in text
    assert sorted(p.name for p in small_disk.iterdir()) == ["junk", "log"]


def test_a_store_that_hangs_delays_no_answer_and_no_end(monkeypatch, capfd):
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead.listen(50)  # takes connections, and never says a word
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{dead.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        assert LAST_SECONDS < 60  # what supervisors leave a process
        channel, heard = channel_to("s3://bucket/log", {"last_seconds": 4}, drift_alarm=0.01)
        slowest = 0.0
        for i in range(500):
            begun = time.perf_counter()
            channel.hand_over(rows(3, first=3 * i), 3)
            slowest = max(slowest, time.perf_counter() - begun)
        assert slowest < 0.5
        until(lambda: heard[-1]["received"] == 1500)
        begun = time.monotonic()
        end_of(channel)
        assert time.monotonic() - begun < 30
    assert "1500 rows and pictures are lost: s3://bucket/log" in capfd.readouterr().err


def test_garbage_is_answered_logged_and_counted_and_raises_no_alarm(served, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    model, _, end = served(log_to=str(tmp_path), drift_alarm=0.01)
    good = pictures(200, 77)
    junk = [b"", b"noise" * 40, good[0][:100], b"\xff\xd8" + bytes(50), None]
    sent = [junk[i % 5] if rng.random() < 0.05 else image for i, image in enumerate(good)]
    n = sum(image in junk for image in sent)
    assert 5 < n < 20
    answers = [
        model.predict(frame(sent[i : i + 4]), {"on_error": "report"}) for i in range(0, 200, 4)
    ]
    assert sum(a["error"].notna().sum() for a in answers) == n
    channel = model._monitor._channel
    until(lambda: channel._taken == 200)
    end()
    table = pd.read_parquet(tmp_path / "scores")
    assert len(table) == 200
    assert table["error"].notna().sum() == n
    assert table["alarm"].isna().all()


def test_answers_under_a_clock_that_jumps_are_all_there(served, tmp_path, monkeypatch):  # noqa: F811
    model, _, end = served(log_to=str(tmp_path), keep="retest")
    now = time.time()
    image = pictures(1, 7)
    for jump in (0, -86_400 * 365, 86_400 * 3650, 5):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        model.predict(frame(image))
    end()
    times = pd.read_parquet(tmp_path / "scores")["time"]
    assert [round(t.timestamp() - now) for t in times] == [0, -86_400 * 365, 86_400 * 3650, 5]


def test_threads_that_hand_over_at_once_lose_nothing(tmp_path):
    channel, _ = channel_to(tmp_path / "log")

    def hand_over(k):
        for i in range(50):
            channel.hand_over(rows(1, first=1000 * k + i), 1)
            time.sleep(0.001)

    threads = [threading.Thread(target=hand_over, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end_of(channel)
    assert not +channel.dropped
    assert pd.read_parquet(tmp_path / "log/scores")["time"].nunique() == 800
