import os
import time

import pandas as pd
import pytest

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.serving.monitor import channel as module
from dfm_mlflow.serving.monitor.channel import Channel
from dfm_mlflow.storage.dated_folder import DatedFolder
from dfm_mlflow.storage.served_log import tables

from .test_writer import MODEL, rows


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def opened(tmp_path):
    channels = []

    def open_one(seconds=1000.0, **settings):
        heard = []
        given = ServingSettings(log_to=str(tmp_path / "log"), **settings)
        channel = Channel(given, 1, MODEL, heard.append, {"seconds": seconds})
        channels.append(channel)
        until(lambda: heard)
        return channel, heard

    yield open_one
    for channel in channels:
        channel.close(20)
        channel._process.kill()
        channel._process.wait()


def test_what_is_handed_over_is_in_the_log_when_it_is_closed(opened, tmp_path):
    channel, _ = opened(keep="flagged")
    picture = b"\x89PNG" + bytes(50_000)
    channel.hand_over(rows(500), 500)  # as a request of many pictures
    channel.hand_over(rows(1, pictures=["ab" * 32]), 1, [picture])
    channel.close(60)
    assert channel._process.returncode == 0
    assert len(pd.read_parquet(tmp_path / "log/scores")) == 501
    assert (tmp_path / f"log/kept/ab/{'ab' * 32}.png").read_bytes() == picture
    assert not +channel.dropped


def test_a_log_in_s3_is_the_same(s3_store):
    heard = []
    address = f"s3://{s3_store.bucket}/line3"
    given = ServingSettings(log_to=address, keep="flagged", drift_alarm=0.01)
    channel = Channel(given, 1, MODEL, heard.append, {"seconds": 1000})
    until(lambda: heard and heard[-1]["remembers"])  # what an earlier life left has been read
    picture = b"\x89PNG" + bytes(5000)
    channel.hand_over(rows(70, pictures=["ab" * 32]), 70, [picture])
    channel.close(60)
    assert channel._process.returncode == 0
    (part,) = tables(address)
    assert len(part) == 70
    folder = DatedFolder(address)
    assert folder.read(f"kept/ab/{'ab' * 32}.png") == picture
    assert [file.name for file in folder.files("_state")] == ["_state/worker-0.json"]


@pytest.mark.integration
def test_a_writer_that_stands_still_delays_nothing_and_rows_are_counted(opened, tmp_path):
    channel, _ = opened()
    os.kill(channel._process.pid, 19)
    slowest = 0.0
    for i in range(20_000):
        begun = time.perf_counter()
        channel.hand_over(rows(1, first=i), 1)
        slowest = max(slowest, time.perf_counter() - begun)
    os.kill(channel._process.pid, 18)
    assert slowest < 0.5  # the machine's own hiccups
    channel.close(60)
    written = len(pd.read_parquet(tmp_path / "log/scores"))
    assert written + channel.dropped["writer"] == 20_000
    assert 100 < written < 20_000


def test_pictures_under_way_are_bounded(opened, monkeypatch):
    monkeypatch.setattr(module, "_BYTES_UNDER_WAY", 150_000)
    channel, _ = opened(keep="flagged")
    os.kill(channel._process.pid, 19)
    for _ in range(5):
        channel.hand_over(rows(1, pictures=["ab" * 32]), 1, [bytes(100_000)])
    os.kill(channel._process.pid, 18)
    assert channel.dropped["picture"] == 4
    assert channel.dropped["writer"] == 0  # their rows are there


@pytest.mark.integration
def test_a_writer_that_is_killed_is_replaced_and_its_rows_are_counted(opened, tmp_path, caplog):
    channel, heard = opened()
    first = channel._process
    channel.hand_over(rows(40), 40)
    until(lambda: heard[-1]["received"] == 40)
    first.kill()
    until(lambda: channel._process is not first)
    assert channel.dropped["writer"] == 40
    assert "with 40 rows that it had not written" in caplog.text
    n = len(heard)
    channel.hand_over(rows(3), 3)
    until(lambda: len(heard) > n)
    channel.close(60)
    assert len(pd.read_parquet(tmp_path / "log/scores")) == 3


@pytest.mark.integration
def test_another_version_is_told_to_the_next_writer_too(opened, tmp_path):
    channel, heard = opened(drift_alarm=0.01)
    channel.begin(MODEL | {"digest": "d2", "version": "4"})
    channel._process.kill()
    n = len(heard)
    until(lambda: len(heard) > n)
    channel.hand_over(rows(60, p=1 / 201, model="d2"), 60)
    until(lambda: heard[-1]["alarm"].get("flagged", {}).get("alarm") == 1)


def test_what_is_secret_is_on_no_command_line(opened):
    secret = "https://example.com/s3cret"
    channel, _ = opened(drift_alarm=0.01, alarm_webhook=secret)
    assert "s3cret" not in str(channel._process.args)
