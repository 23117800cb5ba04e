"""The list of a folder of photographs: manifest.json or manifest.csv, as `invkit.data.folder` describes them."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invkit.data.names import checked_name

MANIFESTS = ("manifest.json", "manifest.csv")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
KEYS = ("image", "mask", "label", "split", "camera")
MOST_CLASSES = 10_000
"""Where labels are numbers and no classes are listed."""


def read_manifest(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows without what is left empty, and the names of the classes in their order."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            rows, classes = content["images"], content.get("classes", [])
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows, classes = list(csv.DictReader(file)), []
            for row in rows:
                row.update({"label": int(row["label"])} if (row.get("label") or "").isdigit() else {})
                row.update({"camera": row["camera"].split()} if row.get("camera") else {})
        rows = [{key: value for key, value in row.items() if value not in (None, "")} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path} is not a manifest ({error!r:.200}); docs/datasets.md shows one") from error
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"{path}: classes must be a list of names")
    if len(set(classes)) != len(classes):
        raise ValueError(f"{path}: the class {Counter(classes).most_common(1)[0][0]!r} is there twice")
    for number, row in enumerate(rows):
        unknown = sorted(str(key) for key in row if key not in KEYS)
        if unknown or not isinstance(row.get("image"), str):
            wrong = f"the unknown key {unknown[0]!r:.80}" if unknown else "no image"
            raise ValueError(f"{path}: entry {number} has {wrong}; the keys are {', '.join(KEYS)}")
        for key in ("image", "mask"):
            if key in row and not isinstance(row[key], str):
                raise ValueError(f"{path}: {key} of entry {number} is {row[key]!r:.80}, not the path of a file")
            if key in row:
                checked_name(row[key], path, SUFFIXES)
    return rows, classes


def numbered(labels: Sequence[int | str | None], classes: Sequence[str], source: Path) -> tuple[list[int | None], int]:
    """Classes as numbers, and how many there are."""
    if all(label is None for label in labels):
        return list(labels), 0
    if all(type(label) is int and label >= 0 for label in labels):
        count = max(len(classes), 1 + max(labels))
        if not classes and count > MOST_CLASSES:
            raise ValueError(f"{source}: label {count - 1} is above {MOST_CLASSES - 1}; count from 0")
        if classes and count > len(classes):
            raise ValueError(f"{source}: label {count - 1} is outside the {len(classes)} classes")
        return list(labels), count
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{source}: labels must be given for every image or none; all numbers from 0, or all names")
    names = list(classes) or sorted(set(labels))
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise ValueError(f"{source}: {unknown[0]!r} is not one of its classes")
    return [names.index(label) for label in labels], len(names)
