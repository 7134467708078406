"""The package's names have types, late as they load; `make lint` checks a user's script, too."""

from pathlib import Path

import dfm_mlflow


def test_every_public_name_is_typed():
    source = Path(dfm_mlflow.__file__).read_text()
    listed = source.split("if TYPE_CHECKING:")[1].split("__version__")[0]
    for name in dfm_mlflow.__all__:
        if name != "__version__":
            assert f"import {name} as {name}" in listed or f"{name} as {name}," in listed, name
