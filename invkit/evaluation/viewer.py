"""The HTML of a page: readable without scripts, and opened from the file system.

A browser does not let a page in a file read other files, but it runs scripts from them. So models come as scripts, each
asked for when it comes into sight. Or everything is in one file, which can be sent around.
"""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from invkit.evaluation.page import (
    ASSETS,
    FOLDER,
    IOU_AFTER,
    IOU_BEFORE,
    MAP,
    PHOTOGRAPH,
    SIDE,
    STEP,
    Method,
    Page,
    Result,
    Tile,
    relative,
    write_content,
)
from invkit.evaluation.report import Table
from invkit.runtime.files import written_aside

QUALITY = 90
"""Of pictures cut out for a page in one file."""
Source = Callable[[Result, int], str]
"""Attributes of an image element that shows the tile with this number."""


def write_page(page: Page, folder: Path, table: Table | None = None, *, single_file: bool = False) -> Path:
    """Write index.html into the folder and return its path.

    Args:
        table: of numbers; None takes that of the page.
        single_file: the page holds all pictures and models itself. Else they lie beside it.
    """
    write_content(page, folder)
    path = folder / "index.html"
    with written_aside(path) as aside:
        aside.write_text(_html(page, table or page.table(), folder if single_file else None), encoding="utf-8")
    return path


def _html(page: Page, table: Table, inlined: Path | None) -> str:
    """The page.

    Args:
        inlined: folder whose files are put into the page; None: they stay beside it.
    """
    source: Source = _of_strip if inlined is None else _Cut(inlined)
    titles = {method.key: method.title for method in page.methods}
    photographs = page.photographs().items()
    if inlined is None:
        models = library = ""
        style = f'<link rel="stylesheet" href="{FOLDER}/page.css">'
        script = f'<script src="{FOLDER}/page.js"></script>'
    else:
        models = _inlined_models(page, inlined)
        library = f"<script>{_asset('model-viewer.min.js')}</script>\n" if models else ""
        style, script = f"<style>{_asset('page.css')}</style>", f"<script>{_asset('page.js')}</script>"
    return Template(_asset("page.html")).substitute(
        title=escape(page.title),
        text=f'<p class="lead">{escape(page.text)}</p>' if page.text else "",
        style=style,
        table=table.html(),
        choices=_choices(page),
        cards="".join(_card(number, *each, titles, source) for number, each in enumerate(photographs)),
        settings="".join(_settings(method) for method in page.methods if method.settings),
        models=models,
        library=library,
        library_path=f"{FOLDER}/model-viewer.min.js",
        script=script,
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _settings(method: Method) -> str:
    return (
        f'<details class="settings" id="settings-{escape(method.key)}"><summary>Settings of {escape(method.title)}'
        f'</summary><pre tabindex="0">{escape(method.settings)}</pre></details>\n'
    )


def _choices(page: Page) -> str:
    """Lists of methods, classes and statuses to choose from."""
    labels = sorted({result.label for result in page.results if result.label is not None}, key=_natural)
    statuses = sorted({_status(result) for result in page.results})
    return "".join(
        [
            _choice("method", "Method", [(method.key, method.title) for method in page.methods]),
            _choice("class", "Class", [(label, label) for label in labels]),
            _choice("status", "Status", [(status, status) for status in statuses]),
        ]
    )


def _choice(name: str, title: str, values: Sequence[tuple[str, str]]) -> str:
    """A drop-down list; nothing where there is nothing to choose."""
    if len(values) < 2:
        return ""
    options = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in values)
    return f'<label>{title} <select id="{name}"><option value="">all</option>{options}</select></label>'


def _natural(label: str) -> tuple[int, str]:
    """Numbers in their order, then words in theirs."""
    return (int(label), "") if label.isdigit() else (2**63, label)


def _status(result: Result) -> str:
    """In few words: of what failed not the whole reason."""
    return result.status if result.strip is not None else "failed"


def _card(number: int, name: str, results: Sequence[Result], titles: dict[str, str], source: Source) -> str:
    """A photograph and what was made of it."""
    pictured = next((result for result in results if result.strip is not None), None)
    photograph = "" if pictured is None else "".join(_figures(pictured, PHOTOGRAPH, source))
    label = next((result.label for result in results if result.label is not None), None)
    facts = "" if label is None else f'<p class="facts">class {escape(label)}</p>'
    shown = "".join(_shown(result, f"{number}-{place}", titles, source) for place, result in enumerate(results))
    return (
        f'<article class="card" data-name="{escape(name)}" data-class="{escape(label or "")}" data-place="{number}" '
        f'aria-labelledby="name-{number}">\n<div class="about"><h2 id="name-{number}">{_breakable(name)}</h2>{facts}'
        f'<div class="photograph">{photograph}</div></div>\n<div class="results">{shown}</div></article>\n'
    )


def _breakable(name: str) -> str:
    """The name, which may go on in another line where it has a mark."""
    return "".join(f"{escape(letter)}<wbr>" if letter in "/_-." else escape(letter) for letter in name)


def _shown(result: Result, key: str, titles: dict[str, str], source: Source) -> str:
    """What one method made of it."""
    title, status = titles[result.method], _status(result)
    before, after = result.numbers.get(IOU_BEFORE), result.numbers.get(IOU_AFTER)
    data = {"method": result.method, "status": status}
    data |= {} if after is None else {"iou": f"{after:.6f}"}
    data |= {} if after is None or before is None else {"gain": f"{after - before:.6f}"}
    attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
    kind = "sound" if status == "ok" else "doubted"
    head = f'<h3>{escape(title)}</h3><p class="verdict"><span class="status {kind}">{escape(status)}</span>'
    if after is not None:
        arrow = "" if before is None else f"{before:.2f} <span aria-label='to'>&rarr;</span> "
        head += f' <span class="iou">IoU {arrow}<b>{after:.2f}</b></span>'
    head += "</p>"
    reasons = result.doubts if result.strip is not None else (result.status,)
    doubts = "".join(f"<li>{escape(doubt)}</li>" for doubt in reasons)
    doubts = f'<ul class="doubts">{doubts}</ul>' if doubts else ""
    views = "" if result.strip is None else _views(result, key, title, source)
    return (
        f'<section class="result"{attributes} aria-label="{escape(f"{result.name} by {title}")}">{head}{doubts}{views}'
        f"{_details(result)}</section>\n"
    )


def _views(result: Result, key: str, title: str, source: Source) -> str:
    """The model, the steps of the search, and small pictures of what else there is to see."""
    steps = [(place, tile) for place, tile in enumerate(result.tiles) if tile.kind == STEP]
    stage = f'<div class="stage"{_model(result, key, title)}>{_image(result, *steps[-1], source)}</div>'
    items = "".join(
        f'<li data-said="{escape(tile.caption)}">{_image(result, place, tile, source)}'
        f"<span>{escape(tile.caption)}</span></li>"
        for place, tile in steps
    )
    slider = (
        f'<label class="slider" hidden><span class="quiet">Steps of the search for {escape(result.name)} by '
        f'{escape(title)}</span><input type="range" min="0" max="{len(steps) - 1}" step="1" value="{len(steps) - 1}">'
        "<output></output></label>"
    )
    others = "".join((*_figures(result, MAP, source), *_figures(result, SIDE, source)))
    return (
        f'<div class="views">{stage}<div class="search"><ol class="steps">{items}</ol>{slider}</div></div>'
        f'<div class="others">{others}</div>'
    )


def _model(result: Result, key: str, title: str) -> str:
    if result.script is None:
        return ""
    azimuth, polar = result.orbit or (0.0, 75.0)
    alt = f"Model of {result.name} by {title}, which can be turned with the pointer or the arrow keys"
    return (
        f' data-script="{escape(relative(result.script))}" data-key="model-{key}" data-alt="{escape(alt)}" '
        f'data-orbit="{azimuth:.1f}deg {polar:.1f}deg 105%"'
    )


def _details(result: Result) -> str:
    numbers = "".join(f"<dt>{escape(name)}</dt><dd>{value:.4g}</dd>" for name, value in result.numbers.items())
    settings = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in result.settings.items())
    link = "" if result.model is None else f'<a class="glb" href="{escape(relative(result.model))}" download>GLB</a>'
    parts = f"<dl>{numbers}</dl>" if numbers else ""
    parts += f"<h4>Settings</h4><dl>{settings}</dl>" if settings else ""
    return f'<div class="more"><details><summary>Numbers and settings</summary>{parts}</details>{link}</div>'


def _figures(result: Result, kind: str, source: Source) -> list[str]:
    return [
        f"<figure>{_image(result, place, tile, source)}<figcaption>{escape(tile.caption)}</figcaption></figure>"
        for place, tile in enumerate(result.tiles)
        if tile.kind == kind
    ]


def _image(result: Result, place: int, tile: Tile, source: Source) -> str:
    shown = f'{source(result, place)} alt="{escape(tile.alt)}"'
    return f'<img {shown} width="128" height="128" loading="lazy" decoding="async">'


def _of_strip(result: Result, place: int) -> str:
    """The file of all tiles, of which the style shows one."""
    at = 100 * place / max(len(result.tiles) - 1, 1)
    return f'src="{escape(relative(result.strip))}" style="--at:{at:.4f}%"'


class _Cut:
    """Each tile as a picture of its own, within the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._strips: dict[str, list[str]] = {}

    def __call__(self, result: Result, place: int) -> str:
        if result.strip not in self._strips:
            self._strips[result.strip] = [_data(tile) for tile in _tiles(self.folder / result.strip)]
        return f'src="{self._strips[result.strip][place]}"'


def _tiles(path: Path) -> list[Image.Image]:
    with Image.open(path) as strip:
        side = strip.height
        return [strip.crop((left, 0, left + side, side)) for left in range(0, strip.width, side)]


def _data(tile: Image.Image) -> str:
    buffer = io.BytesIO()
    tile.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _inlined_models(page: Page, folder: Path) -> str:
    """The models as blocks of text that `page.js` finds by their keys."""
    found = []
    for number, results in enumerate(page.photographs().values()):
        for place, result in enumerate(results):
            if result.model is not None:
                content = base64.b64encode((folder / result.model).read_bytes()).decode()
                found.append(f'<script type="text/plain" id="model-{number}-{place}">{content}</script>\n')
    return "".join(found)
