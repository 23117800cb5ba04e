"""The page of reconstructions in a real browser, opened from the file system."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image, ImageDraw

from invkit.evaluation.page import MAP, PHOTOGRAPH, SIDE, STEP, Method, Page, Result, Tile
from invkit.evaluation.viewer import write_page
from invkit.export import write_glb
from invkit.runtime.files import file_name

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "browser" / "chromium.py"
spec = importlib.util.spec_from_file_location("chromium", SCRIPT)
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.found() is None, reason=chromium.INSTALL),
    pytest.mark.skipif(importlib.util.find_spec("websocket") is None, reason='pip install -e ".[dev]" is to be run'),
]

NAMES = ("<b>\"x'.png", "50% of a #wren?.jpg", "rotkehlchen äöü & co", "plain")
IOUS = {"mesh": (0.9, 0.4, 0.7, 0.6), "field": (0.8, 0.85, 0.3, 0.95)}
RED, GREEN = (255, 0, 0), (0, 200, 0)
WIDTHS = {"desktop": (1440, 900), "phone": (390, 844)}


def strip(path: Path, count: int, color: tuple[int, int, int], side: int = 48) -> None:
    """A disc of this color in each tile, the larger the later."""
    picture = Image.new("RGB", (count * side, side), "white")
    for place in range(count):
        radius, middle = 4 + place, place * side + side / 2
        ImageDraw.Draw(picture).ellipse(
            (middle - radius, side / 2 - radius, middle + radius, side / 2 + radius), fill=color
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def tiles(name: str) -> tuple[Tile, ...]:
    shown = [
        (PHOTOGRAPH, "photograph"),
        (PHOTOGRAPH, "cut out"),
        (STEP, "first guess"),
        (STEP, "after 3 steps, IoU 0.50"),
    ]
    shown += [(STEP, "after 30 steps, IoU 0.70"), (MAP, "normals"), (SIDE, "turned by 90 degrees")]
    return tuple(Tile(kind, caption, f"{caption} of {name}") for kind, caption in shown)


def results(folder: Path, method: str) -> Iterator[Result]:
    for place, (name, iou) in enumerate(zip(NAMES, IOUS[method], strict=True)):
        path = f"page/pictures/{file_name(name)}.{method}.webp"
        strip(folder / path, len(tiles(name)), RED)
        numbers = {"IoU at first": iou - 0.1 * place, "IoU": iou}
        doubted = iou < 0.5
        yield Result(
            name, method, "doubtful" if doubted else "ok", tiles(name), path, orbit=(20.0 * place, 80.0),
            label=str(place % 2), numbers=numbers, doubts=("what <i>was</i> found is small",) if doubted else (),
        )  # fmt: skip


def page_in(folder: Path) -> Page:
    """Two methods, four photographs with names that are odd in HTML and URLs; the last has one model."""
    page = Page("Birds <of> a feather", 'What is "shown" & more')
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.visual.vertex_colors = np.tile([*GREEN, 255], (len(ball.vertices), 1))
    for method in IOUS:
        page = page.with_results(Method(method, f"The {method} method", "settings: <none>"), results(folder, method))
        models = {name: folder / "meshes" / f"{file_name(name)}.{method}.glb" for name in NAMES}
        if method == "field":
            del models["plain"]
        for model in models.values():
            write_glb(model, ball)
        page = page.with_models(folder, models, method)
    return replace(page, results=(*page.results, Result("broken", "mesh", "the mask is <empty>")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("with a #space & 100%")
    return write_page(page_in(folder), folder)


@pytest.fixture(scope="module")
def pictures_only(tmp_path_factory) -> Path:
    """The page before there are models: drawing these takes a while without a graphics card."""
    folder = tmp_path_factory.mktemp("pictures")
    page = page_in(folder)
    return write_page(replace(page, results=tuple(replace(result, script=None) for result in page.results)), folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The page in one file, in a folder with nothing else."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_page(page_in(folder), folder, single_file=True)
    return path.rename(tmp_path_factory.mktemp("moved") / "index.html")


def live(browser: Any) -> int:
    return browser.evaluate("document.querySelectorAll('.stage.live').length")


def greens(browser: Any, selector: str) -> float:
    """How much of an element is green, as only models are."""
    box = browser.evaluate(
        f"(() => {{ const box = document.querySelector('{selector}').getBoundingClientRect(); "
        "return [box.x + scrollX, box.y + scrollY, box.width, box.height]; })()"
    )
    pixels = np.asarray(browser.screenshot(tuple(box))).astype(int)
    return float(((pixels[..., 1] > pixels[..., 0] + 40) & (pixels[..., 1] > pixels[..., 2] + 40)).mean())


def fits(browser: Any) -> bool:
    """Whether every picture is there and nothing is wider than the window."""
    broken = browser.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length")
    return not broken and browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def shown(browser: Any) -> list[str]:
    """Names on the cards that are shown, in their order."""
    return browser.evaluate("[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.name)")


def choose(browser: Any, name: str, value: str) -> None:
    browser.evaluate(
        f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}'; "
        "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_models_are_drawn_and_turn_by_keys_at_both_widths(browser, index):
    browser.show(*WIDTHS["desktop"])
    browser.open(index)
    browser.wait("document.querySelectorAll('.stage.live').length > 0")
    assert greens(browser, ".stage.live") > 0.2
    assert fits(browser)
    assert browser.evaluate("document.querySelector('model-viewer').alt").startswith(f"Model of {NAMES[0]}")
    azimuth = "document.querySelector('model-viewer').getCameraOrbit().theta"
    before = browser.evaluate(azimuth)
    browser.evaluate("document.querySelector('model-viewer').shadowRoot.querySelector('.userInput').focus()")
    browser.press("ArrowRight", 39)
    browser.wait(f"Math.abs({azimuth} - {before}) > 0.05")
    browser.show(*WIDTHS["phone"], dark=True)
    browser.wait("document.querySelector('.stage.live').getBoundingClientRect().width < 200")
    assert greens(browser, ".stage.live") > 0.2
    assert fits(browser)
    assert browser.faults == []


def test_one_file_holds_all_of_it(browser, alone):
    browser.show(*WIDTHS["phone"])
    browser.open(alone)
    browser.wait("document.querySelectorAll('.stage.live').length > 0")
    assert greens(browser, ".stage.live") > 0.2
    assert fits(browser)
    assert browser.faults == []


def test_the_slider_shows_the_steps_and_obeys_keys(browser, pictures_only):
    browser.show(*WIDTHS["desktop"])
    browser.open(pictures_only)
    seen = "[...document.querySelector('.steps').children].filter(s => !s.hidden).map(s => s.dataset.said)"
    assert browser.evaluate(seen) == ["after 30 steps, IoU 0.70"]
    browser.evaluate("document.querySelector('.slider input').focus()")
    assert browser.evaluate("document.activeElement.matches(':focus-visible')")
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("ArrowLeft", 37)
    assert browser.evaluate(seen) == ["after 3 steps, IoU 0.50"]
    assert browser.evaluate("document.activeElement.getAttribute('aria-valuetext')") == "after 3 steps, IoU 0.50"
    browser.press("Home", 36)
    assert browser.evaluate(seen) == ["first guess"]
    assert browser.evaluate("document.querySelector('.slider output').textContent") == "first guess"


def test_sorting_and_filtering(browser, pictures_only):
    browser.show(*WIDTHS["phone"])
    browser.open(pictures_only)
    everything = [*NAMES, "broken"]
    assert shown(browser) == everything
    choose(browser, "sort", "worst")
    assert shown(browser) == [NAMES[2], NAMES[1], NAMES[3], NAMES[0], "broken"]
    choose(browser, "method", "mesh")
    assert shown(browser) == [NAMES[1], NAMES[3], NAMES[2], NAMES[0], "broken"]
    choose(browser, "sort", "best")
    assert shown(browser) == [NAMES[0], NAMES[2], NAMES[3], NAMES[1], "broken"]
    choose(browser, "sort", "gain")
    assert shown(browser) == [*NAMES, "broken"]
    choose(browser, "status", "failed")
    assert shown(browser) == ["broken"]
    choose(browser, "status", "")
    choose(browser, "method", "")
    choose(browser, "class", "1")
    assert shown(browser) == [NAMES[1], NAMES[3]]
    choose(browser, "class", "")
    choose(browser, "iou", "0.65")
    assert shown(browser) == [NAMES[1], NAMES[2], NAMES[3]]
    choose(browser, "iou", "1")
    choose(browser, "search", "WREN?")
    assert shown(browser) == [NAMES[1]]
    assert browser.evaluate("document.getElementById('count').textContent") == "1 of 5 photographs"
    choose(browser, "search", "")
    choose(browser, "sort", "")
    assert shown(browser) == everything
    assert browser.faults == []


def test_without_scripts_every_picture_is_there(browser, index):
    browser.show(*WIDTHS["phone"], scripts=False)
    browser.open(index)
    pixels = np.asarray(browser.screenshot()).astype(int)
    browser.show(*WIDTHS["phone"])
    assert ((pixels[..., 0] > 200) & (pixels[..., 1] < 60)).mean() > 0.01
    assert live(browser) == 0


def test_text_of_users_stays_text(browser, pictures_only):
    browser.show(*WIDTHS["desktop"])
    browser.open(pictures_only)
    assert browser.evaluate("document.querySelector('h1').textContent") == "Birds <of> a feather"
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)") == [*NAMES, "broken"]
    assert browser.evaluate("document.querySelectorAll('.doubts i, .card b > *, h2 b').length") == 0
    alts = browser.evaluate("[...document.querySelectorAll('.card img')].map(i => i.alt)")
    assert all(alts)
    assert f"photograph of {NAMES[0]}" in alts
    links = browser.evaluate(
        "[...document.querySelectorAll('a.glb')].map(a => decodeURIComponent(new URL(a.href).pathname))"
    )
    assert len(links) == 7
    assert all(Path(link).is_file() for link in links)


def test_of_a_thousand_results_only_those_in_sight_are_models(browser, tmp_path):
    page = page_in(tmp_path)
    first = next(result for result in page.results if result.script)
    many = tuple(replace(first, name=f"bird {number}") for number in range(1000))
    path = write_page(replace(page, methods=page.methods[:1], results=many), tmp_path)
    browser.show(*WIDTHS["desktop"])
    browser.open(path)
    browser.wait("document.querySelectorAll('model-viewer').length > 0")
    assert browser.evaluate("document.querySelectorAll('model-viewer').length") <= 6
    assert browser.evaluate("document.querySelectorAll('.card').length") == 1000
    began = browser.evaluate("performance.now()")
    browser.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    browser.wait("document.querySelector('.card:last-child model-viewer') !== null")
    assert browser.evaluate("performance.now()") - began < 10_000
    assert browser.evaluate("document.querySelectorAll('model-viewer').length") <= 12
    assert browser.faults == []
