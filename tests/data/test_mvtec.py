import contextlib
import hashlib
import http.server
import io
import shutil
import tarfile
import threading

import pooch
import pytest

from dfm_mlflow.data import mvtec
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.mvtec import mvtec_ad
from dfm_mlflow.errors import DataError


def archive_of(members):
    """A .tar.xz of (name or TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = [(f"bottle/train/good/{i:03d}.png", bytes([i]) * 100) for i in range(3)]
GOOD += [
    ("bottle/test/broken/000.png", b"b"),
    ("bottle/ground_truth/broken/000_mask.png", b"m"),
    ("readme.txt", b"r"),
]
ARCHIVE = archive_of(GOOD)


class Mirror:
    """A server of one archive; ``plan`` holds what to do at each request, then all is well."""

    def __init__(self):
        self.data, self.plan, self.requests, self.poured = ARCHIVE, [], 0, 0

    def answer(self, handler):
        self.requests += 1
        do = self.plan.pop(0) if self.plan else None
        if isinstance(do, int):
            return handler.send_error(do)
        handler.send_response(200)
        if do == "endless":
            return self.pour(handler)
        handler.send_header("Content-Length", str(len(self.data)))
        handler.end_headers()
        handler.wfile.write(self.data[: do[1]] if isinstance(do, tuple) else self.data)

    def pour(self, handler):
        handler.end_headers()
        with contextlib.suppress(OSError):  # who hung up
            for _ in range(300):
                handler.wfile.write(bytes(2**20))
                self.poured += 1


@pytest.fixture
def mirror(monkeypatch):
    mirror = Mirror()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            mirror.answer(self)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("DFM_MVTEC_URL", f"http://127.0.0.1:{server.server_port}/{mvtec.NAME}")
        yield mirror
        server.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DFM_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mvtec, "SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(mvtec, "UNPACKED_BYTES", 10_000)
    monkeypatch.setattr(mvtec, "ARCHIVE_BYTES", 50_000)
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)
    return tmp_path / "home"


def left_in(home):
    return {p.name for p in home.iterdir()} - {".mvtec_ad.lock", ".mvtec_ad-licence-shown"}


def test_it_is_fetched_once_and_used(home, mirror, caplog):
    catalog = load_catalog("auto", ["bottle"])
    assert catalog.source == str(home / "mvtec_ad")
    assert [i.path.read_bytes() for i in catalog.train] == [c for _, c in GOOD[:3]]
    assert catalog.test[0].mask.files[0].name == "000_mask.png"
    assert left_in(home) == {"mvtec_ad"}
    mirror.plan = [500] * 100
    assert load_catalog("mvtec_ad", ["bottle"]).digest == catalog.digest
    assert mirror.requests == 1
    assert caplog.text.count("CC BY-NC-SA 4.0") == 1
    assert "CC BY-NC-SA" in (home / ".mvtec_ad-licence-shown").read_text()


def test_after_a_broken_connection_it_is_fetched_anew(home, mirror):
    mirror.plan = [("cut", 50), 503, ("cut", 60)]
    mvtec_ad()
    assert mirror.requests == 4
    assert left_in(home) == {"mvtec_ad"}


def test_what_breaks_each_time_is_one_sentence_and_leaves_nothing(home, mirror):
    mirror.plan = [("cut", 50)] * 100
    with pytest.raises(DataError, match="cannot be fetched"):
        mvtec_ad()
    assert mirror.requests == mvtec.TRIES
    assert left_in(home) == set()


def test_half_an_archive_of_a_killed_process_is_cleared_away(home, mirror):
    fetching = home / ".mvtec_ad-fetching"
    fetching.mkdir(parents=True)
    (fetching / "tmpkilled").write_bytes(b"half of it")
    mvtec_ad()
    assert left_in(home) == {"mvtec_ad"}


def test_a_server_that_never_ends_is_left(home, mirror, monkeypatch):
    monkeypatch.setattr(mvtec, "ARCHIVE_BYTES", 5 * 2**20)
    mirror.plan = [("cut", 50), "endless"]
    with pytest.raises(DataError, match=r"sends more than the .* correct DFM_MVTEC_URL"):
        mvtec_ad()
    assert left_in(home) == set()
    assert mirror.poured < 100


def test_a_length_beyond_the_archive_s_is_not_fetched(home, mirror, monkeypatch):
    monkeypatch.setattr(mvtec, "ARCHIVE_BYTES", len(ARCHIVE) - 1)
    with pytest.raises(DataError, match="sends more than"):
        mvtec_ad()
    assert left_in(home) == set()


def test_another_archive_is_refused_and_removed(home, mirror):
    mirror.data = archive_of(GOOD[:2])
    with pytest.raises(DataError, match=r"has the SHA-256 \w{64} and not \w{64}: it was removed"):
        mvtec_ad()
    assert left_in(home) == set()


@pytest.mark.parametrize("free", [0, 50_000 + 9_999])
def test_too_small_a_disk_is_known_before_the_first_byte(home, mirror, monkeypatch, free):
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(mvtec.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=f"needs .* GB at {home}.* set DFM_DATA_HOME"):
        mvtec_ad()
    assert left_in(home) == set()
    monkeypatch.setattr(mvtec.shutil, "disk_usage", lambda path: usage._replace(free=free + 10**5))
    mvtec_ad()


@pytest.mark.parametrize(
    "member",
    [
        "../outside.png",
        "bottle/../../outside.png",
        special("bottle/link", tarfile.SYMTYPE, "/etc"),
        special("bottle/link", tarfile.SYMTYPE, "../../outside"),
        special("bottle/link", tarfile.LNKTYPE, "../outside"),
        special("bottle/null", tarfile.CHRTYPE),
        special("bottle/disk", tarfile.BLKTYPE),
        special("bottle/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda m: m if isinstance(m, str) else f"{m.name} {m.type} {m.linkname}",
)
def test_an_archive_that_reaches_out_is_refused_and_leaves_nothing(
    home, mirror, monkeypatch, tmp_path, member
):
    (tmp_path / "outside").write_bytes(b"untouched")
    mirror.data = archive_of([*GOOD, (member, b"")])
    monkeypatch.setattr(mvtec, "SHA256", hashlib.sha256(mirror.data).hexdigest())
    with pytest.raises(DataError, match="cannot be unpacked safely .* nothing of it was kept"):
        mvtec_ad()
    assert left_in(home) == set()
    assert {p.name for p in tmp_path.iterdir()} == {"home", "outside"}


def test_an_absolute_name_lands_inside(home, mirror, monkeypatch, tmp_path):
    mirror.data = archive_of([*GOOD, (f"{tmp_path}/outside.png", b"x")])
    monkeypatch.setattr(mvtec, "SHA256", hashlib.sha256(mirror.data).hexdigest())
    mvtec_ad()
    assert not (tmp_path / "outside.png").exists()


@pytest.mark.parametrize("data", [ARCHIVE[:100], b"no archive", archive_of([("a.txt", b"")])])
def test_what_is_no_such_archive_is_refused(home, mirror, monkeypatch, data):
    mirror.data = data
    monkeypatch.setattr(mvtec, "SHA256", hashlib.sha256(data).hexdigest())
    with pytest.raises(DataError, match="cannot be unpacked|holds no <category>"):
        mvtec_ad()
    assert left_in(home) == set()


@pytest.mark.parametrize("offline", ["no server", 404])
def test_offline_it_says_what_to_do(home, mirror, monkeypatch, offline):
    if offline == 404:
        mirror.plan = [404] * 100
    else:
        monkeypatch.setenv("DFM_MVTEC_URL", "http://127.0.0.1:9/x.tar.xz")
    with pytest.raises(DataError) as caught:
        load_catalog("mvtec_ad", ["bottle"])
    said = str(caught.value)
    for words in (
        f"not at {home}/mvtec_ad",
        str(home / mvtec.NAME),
        "DFM_MVTEC_URL",
        "data=<folder>",
    ):
        assert words in said
    assert mirror.requests <= 1  # what is not there is not asked for again
    assert left_in(home) == set()


def test_an_archive_brought_by_hand_is_used_and_stays(home, mirror):
    home.mkdir()
    (home / mvtec.NAME).write_bytes(b"half of it")
    with pytest.raises(DataError, match="fetch it again to"):
        mvtec_ad()
    (home / mvtec.NAME).write_bytes(ARCHIVE)
    (home / ".mvtec_ad-unpacking-old").mkdir()  # of a process that was killed
    mvtec_ad()
    assert mirror.requests == 0
    assert left_in(home) == {"mvtec_ad", mvtec.NAME}


def test_a_mirror_on_a_disk(home, mirror, monkeypatch, tmp_path):
    (tmp_path / "a.tar.xz").write_bytes(ARCHIVE)
    monkeypatch.setenv("DFM_MVTEC_URL", (tmp_path / "a.tar.xz").as_uri())
    mvtec_ad()
    assert (tmp_path / "a.tar.xz").exists()


def test_a_mirror_on_a_disk_that_is_not_there_says_what_to_do(home, monkeypatch, tmp_path):
    monkeypatch.setenv("DFM_MVTEC_URL", (tmp_path / "gone.tar.xz").as_uri())
    with pytest.raises(
        DataError, match=r"cannot be fetched from file://.*gone.* \(there is no such"
    ):
        mvtec_ad()
    assert left_in(home) == set()


def test_a_full_disk_and_an_unwritable_home_are_one_sentence(home, mirror, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(
            tarfile.TarFile,
            "extract",
            lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        with pytest.raises(DataError, match="cannot be put there .*No space left"):
            mvtec_ad()
    assert left_in(home) == {".mvtec_ad-fetching"}  # whole: it need not be fetched again
    mvtec_ad()
    assert mirror.requests == 1
    assert left_in(home) == {"mvtec_ad"}
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DFM_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be put there"):
        mvtec_ad()


def test_processes_wait_for_each_other(home, mirror):
    errors = []

    def fetch():
        try:
            mvtec_ad()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert mirror.requests == 1


def test_the_official_archive_is_the_one_named():
    assert mvtec.URL.startswith("https://www.mydrive.ch/")
    assert len(mvtec.SHA256) == 64
