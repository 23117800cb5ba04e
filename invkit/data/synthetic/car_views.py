"""Views of procedural cars, written in the layout of ShapeNet-SRN.

root/cars_{train,val,test}/<object>/intrinsics.txt       focal length and principal point in pixels, image size
root/cars_{train,val,test}/<object>/rgb/000000.png       white background
root/cars_{train,val,test}/<object>/pose/000000.txt      camera-to-world, OpenCV axes, 16 numbers
root/cars_{train,val,test}/<object>/mesh.npz             vertices, faces, part, colors, shading (plain arrays)
root/synthetic.json                                      how all this was made
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import Image

from invkit.data.staging import write_once
from invkit.data.synthetic.cars import build_car, draw_car
from invkit.data.synthetic.scan_conversion import picture
from invkit.data.synthetic.shading import shade
from invkit.data.synthetic.surfaces import Surface
from invkit.geometry.camera import Camera

VERSION = 1  # goes up whenever the same parameters would give other pictures
SPLITS = ("train", "val", "test")
RADIUS = 1.3
FOCAL = 131.25 / 128  # over the image width
SUPERSAMPLE = 3
OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_cars(
    root: str | Path,
    *,
    train_objects: int = 64,
    val_objects: int = 8,
    test_objects: int = 8,
    train_views: int = 50,
    test_views: int = 251,
    size: int = 128,
    seed: int = 0,
) -> None:
    """A data set of cars under `root`, made once: the same parameters again keep the folder as it is.

    Args:
        train_views: random viewpoints on the whole sphere.
        test_views: viewpoints on a spiral around each car of val and test, the same for all.

    Raises:
        ValueError: a number is out of range, or `root` holds something else (see `write_once`).
    """
    counts = {"train": train_objects, "val": val_objects, "test": test_objects}
    if min(counts.values()) < 0 or min(train_views, test_views) < 1 or size < 16:
        raise ValueError(f"cannot write {counts} cars with {train_views} and {test_views} views of {size} pixels")
    recipe = {
        "kind": "cars", "version": VERSION, **counts, "train_views": train_views, "test_views": test_views,
        "size": size, "seed": seed,
    }  # fmt: skip

    def write(folder: Path) -> None:
        for split, count in counts.items():
            (folder / f"cars_{split}").mkdir()
            for index in range(count):
                place = folder / f"cars_{split}" / f"car_{split}_{index:05d}"
                surface, shading = make_car(split, index, seed=seed)
                poses = _random_poses(split, index, train_views, seed) if split == "train" else spiral(test_views)
                _write_object(place, surface, shading, poses, size)

    write_once(root, recipe, write)


def make_car(split: str, index: int, *, seed: int = 0) -> tuple[Surface, Float64[np.ndarray, "V"]]:
    """The car at `index` of a split, whatever else is made, and what the light multiplies its colors by."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    surface = build_car(draw_car(rng))
    away, around = np.radians(rng.uniform(5, 40)), rng.uniform(0, 2 * np.pi)
    light = np.array([np.sin(away) * np.cos(around), np.sin(away) * np.sin(around), np.cos(away)])
    return surface, shade(surface, light, ambient=0.5)


def render_car(
    surface: Surface, shading: Float64[np.ndarray, "V"], pose: Float64[np.ndarray, "4 4"], size: int
) -> UInt8[np.ndarray, "S S 3"]:
    """The car on white, from a camera-to-world pose with OpenCV axes."""
    matrix = torch.from_numpy(pose @ OPENCV_TO_OPENGL)[None]
    camera = Camera.from_matrix(matrix, torch.tensor([FOCAL], dtype=torch.float64))
    seen = picture(surface, surface.colors * shading[:, None], camera, height=size, width=size, supersample=SUPERSAMPLE)
    return (seen.over(1.0).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def look_at(position: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "4 4"]:
    """Camera-to-world, OpenCV axes, of a camera at `position` that looks at the origin, +z up in its picture."""
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, position], axis=1)
    return pose


def spiral(count: int) -> list[Float64[np.ndarray, "4 4"]]:
    """Poses on a spiral over the upper hemisphere, six turns from near the zenith down to the horizon."""
    share = (np.arange(count) + 0.5) / count
    height, turn = np.cos(np.radians(5 + 85 * share)), 12 * np.pi * share
    across = np.sqrt(1 - height**2)
    places = np.stack([across * np.cos(turn), across * np.sin(turn), height], axis=1)
    return [look_at(RADIUS * place) for place in places]


def _random_poses(split: str, index: int, count: int, seed: int) -> list[Float64[np.ndarray, "4 4"]]:
    poses = []
    for view in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, view])
        height, turn = rng.uniform(-0.995, 0.995), rng.uniform(0, 2 * np.pi)
        across = np.sqrt(1 - height**2)
        poses.append(look_at(RADIUS * np.array([across * np.cos(turn), across * np.sin(turn), height])))
    return poses


def _write_object(
    folder: Path,
    surface: Surface,
    shading: Float64[np.ndarray, "V"],
    poses: list[Float64[np.ndarray, "4 4"]],
    size: int,
) -> None:
    for name in ("rgb", "pose"):
        (folder / name).mkdir(parents=True)
    center = f"{size / 2:g}"
    (folder / "intrinsics.txt").write_text(f"{FOCAL * size:g} {center} {center} 0.\n0. 0. 0.\n1.\n{size} {size}\n")
    for view, pose in enumerate(poses):
        Image.fromarray(render_car(surface, shading, pose, size)).save(folder / "rgb" / f"{view:06d}.png")
        numbers = " ".join(repr(float(number)) for number in pose.reshape(-1))
        (folder / "pose" / f"{view:06d}.txt").write_text(numbers + "\n")
    np.savez_compressed(
        folder / "mesh.npz",
        vertices=surface.vertices,
        faces=surface.faces.astype(np.int32),
        part=surface.part.astype(np.int16),
        colors=surface.colors,
        shading=shading,
    )
