"""Pictures as an MLflow dataset, made by ``mlflow.data.from_image_folder``.

MLflow imports this module while it is half imported itself (entry point
``mlflow.dataset_constructor``): what reads pictures is imported on use.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.evaluation_dataset import EvaluationDataset
from mlflow.data.pyfunc_dataset_mixin import PyFuncConvertibleDatasetMixin
from mlflow.types import ColSpec, DataType, Schema

from dfm_mlflow.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from dfm_mlflow.data.catalog import Catalog
    from dfm_mlflow.data.item import Item

_MOST_SIZES = 10  # listed one by one; of more only the smallest and the largest


class ImageFolderDataset(Dataset, PyFuncConvertibleDatasetMixin):
    """The labelled pictures of one or several categories.

    Parameters
    ----------
    catalog : Catalog
    name : str, optional
        The categories by default.
    digest : str, optional
        That of roles, labels and contents by default; a run that trains on the same pictures has
        the same.
    """

    def __init__(self, catalog: "Catalog", name: str | None = None, digest: str | None = None):
        self.catalog = catalog
        super().__init__(_source_of(catalog), name or catalog.name[:500], digest)

    if TYPE_CHECKING:  # abstract in MLflow, though "may not be implemented by all datasets"

        def to_pyfunc(self) -> Any:
            """Give nothing: MLflow evaluates through :meth:`to_evaluation_dataset`."""

    def _compute_digest(self) -> str:
        return self.catalog.digest

    @property
    def labelled(self) -> bool:
        """Whether there are test pictures; those of a flat folder have no labels."""
        return bool(self.catalog.test)

    @property
    def to_score(self) -> "list[Item]":
        """Pictures that an evaluation scores: those to test on, or all of a flat folder."""
        return self.catalog.test if self.labelled else self.catalog.train

    @property
    def schema(self) -> Schema:
        """Columns that a table of these pictures has."""
        return Schema(
            [
                ColSpec(DataType.binary, "image"),
                ColSpec(DataType.string, "category"),
                ColSpec(DataType.string, "split"),
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.binary, "mask", required=False),
            ]
        )

    @cached_property
    def profile(self) -> dict[str, Any]:
        """Number of pictures, of each category, split and label, with masks, and of each size.

        ``images`` counts them under ``category/split/label``, and ``sizes`` under
        ``<width>x<height>`` in pixels; of many sizes it has the smallest and the largest area.
        """
        items, looks = self.catalog.items, self.catalog.looks
        found = [looks[str(item.path)].size for item in items]
        sizes = Counter((size[1], size[0]) for size in found if size)
        if len(sizes) > _MOST_SIZES:
            ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
            shown: dict[str, Any] = {
                "different": len(sizes),
                "smallest": _text(ordered[0]),
                "largest": _text(ordered[-1]),
            }
        else:
            shown = {_text(size): n for size, n in sizes.most_common()}
        counts = Counter(f"{i.category}/{i.split}/{i.label}" for i in items)
        return {
            "num_rows": len(items),
            "images": dict(sorted(counts.items())),
            "masks": sum(item.mask is not None for item in items),
            "sizes": shown,
            "unreadable": len(items) - sizes.total(),
        }

    def to_dict(self) -> dict[str, str]:
        """Give what a run stores."""
        return super().to_dict() | {
            "schema": json.dumps({"mlflow_colspec": self.schema.to_dict()}),
            "profile": json.dumps(self.profile),
        }

    def to_evaluation_dataset(
        self, path: str | None = None, feature_names: Sequence[str] | None = None
    ) -> "ImageFolderEvaluationDataset":
        """Give what ``mlflow.models.evaluate`` hands to its evaluators.

        Parameters
        ----------
        path : str, optional
            Of the data, as MLflow notes it.
        feature_names : None
            Refused.

        Returns
        -------
        ImageFolderEvaluationDataset

        Raises
        ------
        DataError
            If `feature_names` are given.
        """
        if feature_names is not None:
            raise DataError("feature_names has no meaning for pictures: leave it out.")
        return ImageFolderEvaluationDataset(self, path)


class ImageFolderEvaluationDataset(EvaluationDataset):
    """Pictures to evaluate on; they are read when an evaluator asks for their bytes."""

    def __init__(self, pictures: ImageFolderDataset, path: str | None = None):
        import pandas as pd

        self.pictures = pictures
        items = pictures.to_score
        table = pd.DataFrame(
            {"image": [str(i.path) for i in items], "label": [i.label for i in items]}
        )
        super().__init__(
            table,  # type: ignore[no-untyped-call]  # MLflow's
            targets="label" if pictures.labelled else None,
            path=path,
            name=pictures.name,
            digest=pictures.digest,
            feature_names=["image"],
        )

    @property
    def features_data(self) -> "pd.DataFrame":
        """Every picture's bytes, as a model of the flavor takes them."""
        import pandas as pd

        from dfm_mlflow.images.read import read_picture

        return pd.DataFrame({"image": [read_picture(i.path) for i in self.pictures.to_score]})


def from_image_folder(
    folder: str | os.PathLike[str],
    category: str | Sequence[str] | None = None,
    name: str | None = None,
    digest: str | None = None,
    *,
    good: str | Sequence[str] | None = None,
    bad: str | Sequence[str] | None = None,
    masks: str | Sequence[str] | None = None,
) -> ImageFolderDataset:
    """List pictures as an MLflow dataset; ``mlflow.data.from_image_folder`` is this function.

    Parameters
    ----------
    folder : str or path
        What ``data`` of a training run may be: a folder or ``s3://`` prefix of one category or
        several, a manifest ``.csv``, ``elpv`` or ``mvtec_ad``.
    category : str or sequence of str, optional
        One or several categories, as names or separated by commas. By default the only one that
        the folder holds; a folder of pictures is called by its own name.
    name, digest : str, optional
        Others than those of :class:`ImageFolderDataset`.
    good, bad, masks : str or sequence of str, optional
        Folders below that of the category, or anywhere, that hold good pictures, defective ones
        and masks, where their names do not say so.

    Returns
    -------
    ImageFolderDataset

    Raises
    ------
    DataError
        If there are no such pictures, or several categories to choose from.
    """
    from dfm_mlflow.data.catalog import load_catalog
    from dfm_mlflow.data.folder import Naming
    from dfm_mlflow.data.source import category_of

    naming = Naming.of(*(",".join(_listed(value)) or "auto" for value in (good, bad, masks)))
    address = os.fspath(folder)
    names = _listed(category) or category_of(address, "auto", naming).split(",")
    catalog = load_catalog(address, dict.fromkeys(names), to_fit=False, naming=naming)
    return ImageFolderDataset(catalog, name, digest)


def _listed(given: str | Sequence[str] | None) -> list[str]:
    return given.split(",") if isinstance(given, str) else list(given or ())


def _source_of(catalog: "Catalog") -> DatasetSource:
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.sources import (  # type: ignore[attr-defined]  # made at run time
        LocalArtifactDatasetSource,
    )

    if catalog.source.startswith("s3://"):
        return resolve_dataset_source(catalog.source)
    if catalog.source == "elpv":  # the folder that the package installed
        folder = os.path.commonpath([str(i.path) for i in catalog.items])
    else:
        folder = os.path.abspath(os.path.expanduser(catalog.source))
    source: DatasetSource = LocalArtifactDatasetSource(folder)
    return source


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
