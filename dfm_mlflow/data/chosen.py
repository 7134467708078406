"""From the options of a verb to the pictures that they mean."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from dfm_mlflow.config import EvaluateOptions, Options, PromoteOptions, RecalibrateOptions
from dfm_mlflow.data.catalog import Catalog, load_catalog
from dfm_mlflow.data.exclude import without_excluded
from dfm_mlflow.data.folder import Naming
from dfm_mlflow.data.masks import check_masks
from dfm_mlflow.data.source import absolute, category_of

T = TypeVar("T", bound=Options)


def located(options: T) -> T:
    """Fill in what only the data know: the category, and where a relative path starts."""
    naming = Naming.of(options.good, options.bad, options.masks)
    found = {
        "category": category_of(options.data, options.category, naming),
        "data": absolute(options.data),
    }
    return type(options).parse(options.model_dump() | found)


def pictures_to_fit(options: Options, *, of_several: bool = False) -> Catalog:
    """List what a training run fits and tests on, and look at its masks."""
    naming = Naming.of(options.good, options.bad, options.masks)
    fewest = options.resolve().fewest_pictures
    catalog = load_catalog(options.data, options.categories, naming=naming, fewest=fewest)
    return with_masks(
        without_excluded(catalog, options.exclude, of_several=of_several), options.max_pixels
    )


def pictures_to_judge(
    options: EvaluateOptions | PromoteOptions, model: Options, categories: Sequence[str]
) -> Catalog:
    """List what a model is to be judged by."""
    own = options.data == "auto" or absolute(options.data) == absolute(model.data)
    folders = {name: getattr(options, name) for name in ("good", "bad", "masks")}
    if own:
        folders |= {name: getattr(model, name) for name, f in folders.items() if f == "auto"}
    data = model.data if options.data == "auto" else options.data
    return load_catalog(
        data, categories, to_fit=False, naming=Naming.of(**folders), all_tested=not own
    )


def pictures_to_calibrate(options: RecalibrateOptions, category: str) -> Catalog:
    """List new good pictures of a category."""
    return load_catalog(options.images, (category,), naming=Naming.of(options.good, options.bad))


def with_masks(catalog: Catalog, max_pixels: int) -> Catalog:
    """Look at the masks of a `catalog`, and take those away that cannot be right or too large.

    `max_pixels` is the limit of a picture.
    """
    return replace(catalog, items=tuple(check_masks(catalog.items, max_pixels)))
