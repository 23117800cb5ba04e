"""What pages show, kept in files and put together; how it looks in a browser is in tests/test_browser.py."""

import base64
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from invkit.evaluation.page import (
    CONTENT,
    IOU_AFTER,
    IOU_BEFORE,
    PHOTOGRAPH,
    STEP,
    Method,
    Page,
    Result,
    Tile,
    merged,
    read,
    write_content,
)
from invkit.evaluation.report import Column, Row, Table
from invkit.evaluation.viewer import write_page

NAMES = ("a/wren #1", "<robin> & 50%")
TILES = (
    Tile(PHOTOGRAPH, "photograph", "Photograph of a bird"),
    Tile(STEP, "first guess", "First guess"),
    Tile(STEP, "after 9 steps", "What was found"),
)


def page_in(folder: Path, method: str = "mesh") -> Page:
    """Two results with pictures, and one that failed."""
    results = []
    for number, name in enumerate(NAMES):
        strip = f"page/pictures/{number} %.webp"
        (folder / strip).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3 * 8, 8), (90 * number, 0, 0)).save(folder / strip)
        numbers = {IOU_BEFORE: 0.25, IOU_AFTER: 0.5 + 0.25 * number}
        results.append(Result(name, method, "ok", TILES, strip, numbers=numbers, orbit=(1.5, 80.0), label=str(number)))
    results.append(Result("gull", method, "the mask is <empty>"))
    return Page("Birds < 3", "What is shown.").with_results(Method(method, "A method", "steps: 9"), results)


def model_in(folder: Path) -> Path:
    path = folder / "meshes" / "a=2Fwren #1.glb"
    path.parent.mkdir()
    path.write_bytes(b"glTF, or so")
    return path


def named(html: str) -> list[str]:
    """Paths of the files beside a page that it names."""
    paths = re.findall(r'(?:src|href|data-script|data-library)="([^"]+)"', html)
    return [unquote(path) for path in paths if not path.startswith(("http", "data:"))]


def test_a_page_is_read_as_it_was_written(tmp_path):
    page = page_in(tmp_path).with_numbers({"3D IoU": {NAMES[0]: 0.75}}, {"3D IoU": 0.75})
    page = page.with_models(tmp_path, {NAMES[0]: model_in(tmp_path)})
    assert read(tmp_path) is None
    write_content(page, tmp_path)
    assert read(tmp_path) == page
    assert "Apache License" in (tmp_path / "page" / "model-viewer.LICENSE").read_text()


def test_a_damaged_page_is_named(tmp_path):
    (tmp_path / CONTENT).parent.mkdir()
    (tmp_path / CONTENT).write_text('{"title": "cut')
    with pytest.raises(ValueError, match=r"page\.json does not hold what a page shows"):
        read(tmp_path)


def test_all_files_it_names_are_there_and_links_are_quoted(tmp_path):
    page = page_in(tmp_path).with_models(tmp_path, {NAMES[0]: model_in(tmp_path)})
    html = write_page(page, tmp_path).read_text()
    files = named(html)
    assert "meshes/a=2Fwren #1.glb" in files
    assert all((tmp_path / path).is_file() for path in files)
    assert not any("#" in path for path in re.findall(r'(?:src|href|data-script)="([^"]+)"', html))
    assert "&lt;robin&gt; &amp; 50%" in html
    assert "<robin>" not in html
    assert "<empty>" not in html


def test_a_model_is_a_script_that_gives_its_bytes(tmp_path):
    page = page_in(tmp_path).with_models(tmp_path, {NAMES[0]: model_in(tmp_path)})
    first, second, _ = page.results
    content = re.fullmatch(r'document\.currentScript\.deliver\("(.*)"\);\n', (tmp_path / first.script).read_text())
    assert base64.b64decode(content.group(1)) == b"glTF, or so"
    assert second.script is None


def test_one_file_names_no_other_but_the_models_to_be_taken_away(tmp_path):
    page = page_in(tmp_path).with_models(tmp_path, {NAMES[0]: model_in(tmp_path)})
    html = write_page(page, tmp_path, single_file=True).read_text()
    files = re.findall(r'<(?:img|script|link)[^>]*?(?:src|href)="([^"]+)"', html)
    assert all(path.startswith("data:image/webp;base64,") for path in files)
    assert len(files) == html.count("<img ") == 2 * (len(TILES) + 1)
    assert base64.b64encode(b"glTF, or so").decode() in html


def test_every_picture_says_what_it_shows(tmp_path):
    html = write_page(page_in(tmp_path), tmp_path).read_text()
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', html)
    assert len(alts) == html.count("<img ") == 2 * (len(TILES) + 1)  # the last step stands for the model too
    assert set(alts) == {tile.alt for tile in TILES}


def test_new_results_take_the_place_of_old_ones_and_keep_what_still_holds(tmp_path):
    page = page_in(tmp_path)
    method, (first, second, failed) = page.methods[0], page.results
    more = page.with_models(tmp_path, {NAMES[0]: model_in(tmp_path)}).with_numbers({"3D IoU": {NAMES[0]: 0.75}})
    again = more.with_results(method, [first, second])
    assert again.results[0].script is not None
    assert again.results[0].numbers["3D IoU"] == 0.75
    assert len(again.results) == 2
    changed = replace(first, numbers={IOU_AFTER: 0.9})
    other = more.with_results(method, [changed], keep=True)
    assert [result.name for result in other.results] == [NAMES[1], "gull", NAMES[0]]
    assert other.results[-1] == changed
    assert failed in other.results


def test_pages_of_folders_stand_side_by_side(tmp_path):
    for name in ("left", "right"):
        folder = tmp_path / name
        folder.mkdir()
        write_page(page_in(folder, "mesh").with_models(folder, {NAMES[0]: model_in(folder)}), folder)
    page = merged("Both", "", tmp_path, {"left": "L", "right": "R"})
    assert [(method.key, method.title) for method in page.methods] == [("left", "L"), ("right", "R")]
    assert {name: [of.method for of in results] for name, results in page.photographs().items()} == {
        name: ["left", "right"] for name in (*NAMES, "gull")
    }
    table = Table("Both", ["method"], [Column("IoU", 2)], [Row(["L"], {"IoU": 0.5}), Row(["R"], {"IoU": 0.25})])
    html = write_page(page, tmp_path, table).read_text()
    assert table.html() in html
    assert all((tmp_path / path).is_file() for path in named(html))
    with pytest.raises(ValueError, match="nowhere has no page"):
        merged("", "", tmp_path, {"nowhere": ""})


def test_the_table_has_means_and_counts(tmp_path):
    (row,) = page_in(tmp_path).with_numbers({}, {"FID": 12.5}).table().rows
    assert row.labels == ["A method", "3", "2"]
    assert row.ours == {IOU_BEFORE: 0.25, IOU_AFTER: 0.625, "FID": 12.5}
