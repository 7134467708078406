"""torchvision without torch's compiler, which it imports for one question of its detection heads.

``torchvision.ops.roi_align`` imports ``torch._dynamo.utils`` for ``is_compile_supported``, and with
it the compiler, sympy, triton and whatever those find installed: two thirds of the seconds of this
package's start. None of it is used here. So the question stands in for its module until anybody
asks for more; whoever does, then or later, gets the true one.
"""

import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

_COMPILER = "torch._dynamo.utils"


class _Asked(ModuleType):
    """Stands in for torch's module until one of its names is asked for."""

    @staticmethod
    def is_compile_supported(device_type: str) -> Any:
        """Ask the true module."""
        return _true_module().is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import itself looks at
            raise AttributeError(name)
        return getattr(_true_module(), name)


def _true_module() -> ModuleType:
    _withdraw()
    return import_module(_COMPILER)


def _withdraw() -> None:
    with suppress(KeyError):
        if isinstance(sys.modules[_COMPILER], _Asked):
            del sys.modules[_COMPILER]


def _load() -> None:
    """Import torchvision; the seconds of that are paid by whoever builds a network."""
    if "torch._dynamo" not in sys.modules:
        sys.modules[_COMPILER] = _Asked(_COMPILER)
    try:
        from torchvision import models
        from torchvision.models.feature_extraction import (
            create_feature_extractor,
            get_graph_node_names,
        )
    finally:
        _withdraw()
    globals().update(
        models=models,
        create_feature_extractor=create_feature_extractor,
        get_graph_node_names=get_graph_node_names,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load()
    return globals()[name]


if TYPE_CHECKING:
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

__all__ = ["create_feature_extractor", "get_graph_node_names", "models"]
