"""The recipe of features: how they were made of videos, kept in their HDF5 file by ``tools.extract``.

It is a JSON object in the attribute ``recipe``: backbone, weights (a digest), preprocessing, precision,
frames (which ones), n_frames (L) and versions (of the packages). Most files of features have none.
"""

import json
from collections.abc import Mapping
from typing import Any

import h5py

from formats.hdf5 import read_text, write_texts

Recipe = Mapping[str, Any]


def write_recipe(file: h5py.File, recipe: Recipe) -> None:
    """Keep it."""
    write_texts(file, {"recipe": json.dumps(recipe)})


def read_recipe(file: h5py.File) -> Recipe | None:
    """The recipe; None: there is none, or something else of that name."""
    try:
        recipe = json.loads(read_text(file, "recipe") or "null")
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def other_recipe(one: Recipe | None, other: Recipe | None) -> str:
    """In what two recipes differ, in words; empty: in nothing, or one is not known.

    Versions do not count: those of the same weights round differently, no more.
    """
    if one is None or other is None:
        return ""
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return "; ".join(f"{key} {one.get(key)}, not {other.get(key)}" for key in keys if key != "versions")


def in_words(recipe: Recipe) -> str:
    """A recipe for a report."""
    known = {key: value for key, value in recipe.items() if key != "versions"}
    versions = recipe.get("versions") or {}
    said = [f"{key} {value}" for key, value in known.items()]
    return "; ".join([*said, ", ".join(f"{key} {value}" for key, value in versions.items())])
