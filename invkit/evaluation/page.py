"""One page for what commands leave: each reconstruction beside its photograph, with its numbers, as a model that turns.

What the page shows is kept beside it (page/page.json, pictures, models), so that a later command adds what it has
found: scripts/export.py models, scripts/evaluate.py numbers. `viewer` makes HTML of it.
"""

import base64
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from invkit.evaluation.report import Column, Row, Table
from invkit.runtime.files import file_name, written_aside

FOLDER = "page"
"""Beside index.html: what it shows."""
CONTENT = f"{FOLDER}/page.json"
ASSETS = resources.files("invkit.evaluation") / "assets"
COPIED = ("page.css", "page.js", "model-viewer.min.js", "model-viewer.LICENSE")
IOU_BEFORE, IOU_AFTER = "IoU at first", "IoU"

PHOTOGRAPH, STEP, MAP, SIDE = "photograph", "step", "map", "side"


@dataclass(frozen=True)
class Tile:
    """One of the square pictures of a result, which lie side by side in one file.

    Args:
        kind: PHOTOGRAPH, STEP of the search, MAP (normals, canonical map) or SIDE (seen from elsewhere).
        alt: says to who cannot see the picture what it shows.
    """

    kind: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Result:
    """What a method made of a photograph.

    Args:
        name: of the photograph.
        method: key of a `Method` of the page.
        strip: file with the tiles; this and all paths are relative to the page. None where there are no pictures.
        model: the GLB file; None where there is none.
        script: the same as a script, which pages may read where they may not read other files.
        orbit: azimuth and polar angle of the photograph's view of the model, degrees.
        numbers: name -> value, IOU_BEFORE and IOU_AFTER among them where there are any.
        settings: what else is known of it.
    """

    name: str
    method: str
    status: str
    tiles: tuple[Tile, ...] = ()
    strip: str | None = None
    model: str | None = None
    script: str | None = None
    orbit: tuple[float, float] | None = None
    label: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def after(self, earlier: "Result | None") -> "Result":
        """The same with model and numbers that it had been given before, where it has not changed since."""
        same = earlier is not None and self.numbers.items() <= earlier.numbers.items()
        if not same or self.script is not None:
            return self
        return replace(self, numbers=earlier.numbers, model=earlier.model, script=earlier.script)

    def below(self, folder: str) -> "Result":
        """The same for a page that lies above a folder."""
        moved = {key: getattr(self, key) for key in ("strip", "model", "script")}
        return replace(self, **{key: None if path is None else f"{folder}/{path}" for key, path in moved.items()})


TITLES = {"meshinv": "MeshInversion", "nerfinv": "Bootstrapped Radiance Field Inversion"}
"""What the methods are called, by package."""


@dataclass(frozen=True)
class Method:
    """What reconstructed.

    Args:
        key: a word that is part of file names.
        settings: of the command, as text.
        measured: name -> value, of all results together.
    """

    key: str
    title: str
    settings: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """The methods, and their results in the order in which they are shown."""

    title: str
    text: str = ""
    methods: tuple[Method, ...] = ()
    results: tuple[Result, ...] = ()

    def photographs(self) -> dict[str, list[Result]]:
        """Name -> its results, in the order of the methods."""
        order = {method.key: place for place, method in enumerate(self.methods)}
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.name, []).append(result)
        return {name: sorted(of, key=lambda result: order[result.method]) for name, of in found.items()}

    def with_results(self, method: Method, results: Iterable[Result], *, keep: bool = False) -> "Page":
        """The page with the results of a method in place of those it had.

        Args:
            keep: those of other photographs stay.
        """
        known = {result.name: result for result in self.results if result.method == method.key}
        new = {result.name: result.after(known.get(result.name)) for result in results}
        others = [result for result in self.results if result.method != method.key or (keep and result.name not in new)]
        methods = {of.key: of for of in self.methods} | {method.key: method}
        return replace(self, methods=tuple(methods.values()), results=(*others, *new.values()))

    def with_models(self, folder: Path, models: Mapping[str, Path], method: str | None = None) -> "Page":
        """The page with GLB files to turn, which are written once more as scripts.

        Args:
            folder: of the page.
            models: name of a photograph -> its file, somewhere below the folder.
            method: whose models they are; None where there is but one.
        """
        return replace(self, results=tuple(self._with_model(result, folder, models, method) for result in self.results))

    def _with_model(self, result: Result, folder: Path, models: Mapping[str, Path], method: str | None) -> Result:
        if result.name not in models or method not in (None, result.method):
            return result
        model = models[result.name]
        script = Path(FOLDER) / "models" / f"{file_name(result.name)}.{result.method}.js"
        with written_aside(folder / script) as aside:
            aside.write_text(f'document.currentScript.deliver("{base64.b64encode(model.read_bytes()).decode()}");\n')
        return replace(result, model=model.relative_to(folder).as_posix(), script=script.as_posix())

    def with_numbers(
        self, per_image: Mapping[str, Mapping[str, float]], measured: Mapping[str, float] | None = None
    ) -> "Page":
        """The page of one method with more numbers.

        Args:
            per_image: name of a number -> photograph -> value.
            measured: name -> value, of all photographs together.
        """
        results = []
        for result in self.results:
            found = {number: values[result.name] for number, values in per_image.items() if result.name in values}
            results.append(replace(result, numbers={**result.numbers, **found}))
        methods = tuple(replace(of, measured={**of.measured, **(measured or {})}) for of in self.methods)
        return replace(self, results=tuple(results), methods=methods)

    def table(self) -> Table:
        """How many results each method has and how they are on average."""
        rows, measured = [], {}
        for method in self.methods:
            own = [result for result in self.results if result.method == method.key]
            means = {}
            for number in (IOU_BEFORE, IOU_AFTER):
                values = [result.numbers[number] for result in own if number in result.numbers]
                means |= {number: sum(values) / len(values)} if values else {}
            sound = sum(result.status == "ok" for result in own)
            measured |= dict.fromkeys(method.measured)
            rows.append(
                Row([method.title, str(len(own)), str(sound)], {**means, **method.measured}),
            )
        columns = [Column(number) for number in (IOU_BEFORE, IOU_AFTER, *measured)]
        return Table(self.title, ["method", "photographs", "without doubt"], columns, rows, comparable=False)


def relative(name: str) -> str:
    """A path as a link has it."""
    return quote(name)


def read(folder: Path) -> Page | None:
    """What the page of a folder shows; None where it has none.

    Raises:
        ValueError: the file that says so is damaged.
    """
    path = folder / CONTENT
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        methods = tuple(Method(**method) for method in content["methods"])
        return Page(content["title"], content["text"], methods, tuple(_result(result) for result in content["results"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold what a page shows ({error!r}); delete it") from error


def write_content(page: Page, folder: Path) -> None:
    """Lay down what the page shows and its own copy of the viewer, so that the folder can be moved."""
    with written_aside(folder / CONTENT) as aside:
        aside.write_text(json.dumps(asdict(page)) + "\n")
    for name in COPIED:
        with resources.as_file(ASSETS / name) as source, written_aside(folder / FOLDER / name) as aside:
            shutil.copyfile(source, aside)


def merged(title: str, text: str, folder: Path, parts: Mapping[str, str]) -> Page:
    """The pages of folders below in one, whose results stand side by side.

    Args:
        parts: folder below `folder` -> title of its method, each with a page of one method.

    Raises:
        ValueError: a folder has no page.
    """
    whole = Page(title, text)
    for name, of in parts.items():
        page = read(folder / name)
        if page is None:
            raise ValueError(f"{folder / name} has no page; run the command that fills it with page=true")
        (method,) = page.methods
        results = [replace(result, method=name).below(name) for result in page.results]
        whole = whole.with_results(replace(method, key=name, title=of), results)
    return whole


def _result(content: dict[str, Any]) -> Result:
    tiles = tuple(Tile(**tile) for tile in content["tiles"])
    orbit = None if content["orbit"] is None else tuple(content["orbit"])
    return Result(**{**content, "tiles": tiles, "orbit": orbit, "doubts": tuple(content["doubts"])})
