import hashlib
import http.server
import io
import pickle
import threading

import pytest
import torch
from safetensors.torch import save_file

from dfm_mlflow.errors import WeightsError
from dfm_mlflow.network import weights as module
from dfm_mlflow.network.weights import load_weights

STATE = {"conv1.weight": torch.ones(2, 3), "bn1.bias": torch.zeros(2)}


def test_safetensors_and_pth_give_the_same(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        loaded = load_weights(str(tmp_path / name), "resnet18", 42)
        assert loaded.id == f"file:{name}"
        assert loaded.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert {k: v.tolist() for k, v in loaded.take(set(STATE)).items()} == {
            k: v.tolist() for k, v in STATE.items()
        }


def test_a_missing_tensor_is_named(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    loaded = load_weights(str(tmp_path / "w.safetensors"), "resnet18", 42)
    with pytest.raises(WeightsError, match=r"lack 1 of 2 tensors .* first is layer3\.0"):
        loaded.take({"bn1.bias", "layer3.0.conv1.weight"})


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize("content", ["pickle", "module", "list", "noise"])
def test_a_pth_that_is_no_plain_state_dict_is_refused_and_not_run(tmp_path, content):
    path = tmp_path / "w.pth"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif content == "noise":
        path.write_bytes(b"\x00\x01" * 50)
    else:
        torch.save(torch.nn.Linear(2, 2) if content == "module" else [1, 2], path)
    with pytest.raises(WeightsError, match="not a plain state dict"):
        load_weights(str(path), "resnet18", 42)


def test_broken_safetensors_and_missing_files(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_weights(str(tmp_path / "w.safetensors"), "resnet18", 42)
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights(str(tmp_path / "none.pth"), "resnet18", 42)


def test_random_weights_warn_loudly(caplog):
    assert load_weights("random", "resnet18", 7).state is None
    assert "NOT pretrained" in caplog.text


@pytest.fixture
def server(tmp_path):
    """A local HTTP server with one weights file, named after its hash as torchvision's are."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save(STATE, folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()[:8]
    (folder / "w.pth").rename(folder / f"net-{digest}.pth")
    (folder / "net-00000000.pth").write_bytes(b"not what the name says")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", f"net-{digest}.pth"
        httpd.shutdown()


def test_imagenet_weights_are_fetched_once_and_checked(server, tmp_path, monkeypatch):
    base, name = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(module, "imagenet_url", lambda backbone: f"{base}/{name}")
    first = load_weights("imagenet", "resnet18", 42)
    assert first.id == f"imagenet:{name}"
    assert set(first.take(set(STATE))) == set(STATE)
    monkeypatch.setattr(module, "imagenet_url", lambda backbone: f"http://127.0.0.1:9/{name}")
    assert load_weights("imagenet", "resnet18", 42).sha256 == first.sha256


@pytest.mark.parametrize("name", ["net-00000000.pth", "net-absent00.pth"])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(server, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(module, "imagenet_url", lambda backbone: f"{server[0]}/{name}")
    with pytest.raises(WeightsError, match="give weights=<file>"):
        load_weights("imagenet", "resnet18", 42)
    assert list((tmp_path / "torch/hub/checkpoints").iterdir()) == []


def test_a_failed_download_names_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(module, "imagenet_url", lambda backbone: "http://127.0.0.1:9/net.pth")
    for there in (True, False):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=there: there or None)
        with pytest.raises(WeightsError) as caught:
            load_weights("imagenet", "resnet18", 42)
        named = "or backbone=efficientnet_lite0, whose weights are installed" in str(caught.value)
        assert named == there


def test_a_relative_file_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"The weights file {tmp_path}/w.pth does not exist"):
        load_weights("w.pth", "resnet18", 42)


def test_published_tables_used_the_first_weights():
    assert module.imagenet_url("resnet18").endswith("resnet18-f37072fd.pth")
    assert "wide_resnet50_2-95faca4d" in module.imagenet_url("wide_resnet50_2")


def test_weights_from_s3(s3_store):
    import torch
    from safetensors.torch import save

    from dfm_mlflow.errors import WeightsError
    from dfm_mlflow.network.weights import load_weights

    state = {"conv1.weight": torch.arange(6.0).view(2, 3)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for name, data in {"w.safetensors": save(state), "w.pth": buffer.getvalue()}.items():
        loaded = load_weights(s3_store.put(f"weights/{name}", data), "resnet18", 0)
        assert (loaded.id, loaded.sha256) == (f"file:{name}", hashlib.sha256(data).hexdigest())
        assert torch.equal(loaded.take(set(state))["conv1.weight"], state["conv1.weight"])
    with pytest.raises(WeightsError, match=r"cannot be fetched: s3://\S+none.pth does not exist"):
        load_weights(f"s3://{s3_store.bucket}/none.pth", "resnet18", 0)
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_weights(s3_store.put("bad.safetensors", b"noise"), "resnet18", 0)
