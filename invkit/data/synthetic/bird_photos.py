"""Photographs of procedural birds, written in the layout of CUB-200-2011 with CMR's annotations.

    root/CUB_200_2011/{images,image_class_labels,train_test_split,bounding_boxes,classes}.txt, images/<class>/<file>.jpg
    root/data/{train,val,test,testval}_cub_cleaned.mat     boxes, key points, masks (1-based pixels, as MATLAB counts)
    root/sfm/anno_{train,val,test,testval}.mat             weak-perspective cameras in that pixel frame, mean key points
    root/ground_truth/<file stem>.npz                      val and test: the mesh, its camera, novel views
    root/synthetic.json                                    how all this was made

A ground-truth file holds plain arrays: vertices [V, 3] (object frame), faces [F, 3], part [F] (which of the closed,
overlapping parts a face belongs to), colors [V, 3] in [0, 1], shading [V] (what the photograph multiplied colors by),
key_points [15] (vertex numbers); rot [3, 3], scale, trans [2] as in anno_*.mat, and quat [4]; novel_rgb [K, S, S, 3]
uint8 on white, novel_mask [K, S, S] uint8 (coverage), novel_cameras [K, 7] (CMR's seven numbers in NDC).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, UInt8
from PIL import Image
from scipy.io import savemat
from scipy.spatial import ConvexHull

from invkit.data.staging import write_once
from invkit.data.synthetic.birds import Bird, build, individual, species
from invkit.data.synthetic.scan_conversion import in_pixels, picture
from invkit.data.synthetic.shading import scenery, shade
from invkit.geometry import rotation
from invkit.geometry.camera import Camera

VERSION = 1  # goes up whenever the same parameters would give other pictures
SPLITS = ("train", "val", "test")
SUPERSAMPLE = 3
NOVEL_SIZE = 128
NOVEL_FILL = 0.95  # half the picture, over the radius of the ball around the bird's box
UPRIGHT = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # a bird seen from the front: x stays right, up is -y


@dataclass(frozen=True)
class Photo:
    """One photograph of one bird, with all that is known about it.

    Args:
        rot, scale, trans: weak-perspective camera in pixels, counted from 1 at the first pixel's center (CMR's frame).
        box: x1, y1, x2, y2 of the mask, 1-based inclusive.
        parts: rows x, y (1-based) and visibility of the 15 key points; zeros where a point is not visible.
    """

    rgb: UInt8[np.ndarray, "H W 3"]
    mask: Bool[np.ndarray, "H W"]
    rot: Float64[np.ndarray, "3 3"]
    scale: float
    trans: Float64[np.ndarray, "2"]
    box: tuple[int, int, int, int]
    parts: Float64[np.ndarray, "3 15"]
    bird: Bird
    light: Float64[np.ndarray, "3"]
    tilt: float
    label: int


def write_birds(
    root: str | Path,
    *,
    train: int = 256,
    val: int = 32,
    test: int = 32,
    num_species: int = 12,
    seed: int = 0,
    novel_views: int = 4,
    photo_size: tuple[int, int] = (160, 224),
) -> None:
    """A data set of birds under `root`, made once: the same parameters again keep the folder as it is.

    Args:
        photo_size: smallest and largest side of a photograph, pixels.
        novel_views: further views of each held-out bird, spread around it.

    Raises:
        ValueError: a number is out of range, or `root` holds something else (see `write_once`).
    """
    counts = {"train": train, "val": val, "test": test}
    if min(counts.values()) < 2:
        raise ValueError(f"each split needs at least 2 birds, as MATLAB files cannot tell one from none: {counts}")
    if num_species < 1 or not 48 <= photo_size[0] <= photo_size[1] or novel_views < 0:
        raise ValueError(
            f"num_species={num_species} must be positive, photo_size={photo_size} ordered and at least 48, "
            f"novel_views={novel_views} not negative"
        )
    recipe = {
        "kind": "birds", "version": VERSION, **counts, "num_species": num_species, "seed": seed,
        "novel_views": novel_views, "photo_size": list(photo_size),
    }  # fmt: skip

    def write(folder: Path) -> None:
        _write(folder, counts, num_species, seed, novel_views, photo_size)

    write_once(root, recipe, write)


def take_photo(
    split: str, index: int, *, seed: int = 0, num_species: int = 12, photo_size: tuple[int, int] = (160, 224)
) -> Photo:
    """The photograph at `index` of a split, whatever else is made."""
    label = index % num_species
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    kind, posture = individual(species(label), rng)
    bird = build(kind, posture)
    width, height = (int(n) for n in rng.integers(photo_size[0], photo_size[1] + 1, 2))
    rot = _viewpoint(rng, posture.tilt)
    light = _from_above(rng, posture.tilt)

    flat = bird.surface.vertices @ rot[:2].T
    low, high = flat.min(axis=0), flat.max(axis=0)
    room = np.array([width, height]) - 6.0
    scale = float((rng.uniform(0.7, 0.98) * room / (high - low)).min())
    slack = room - scale * (high - low)
    trans = 3.0 + slack * rng.uniform(0, 1, 2) - scale * low  # the top-left corner of the photograph is the origin

    side = max(width, height)
    camera = _camera(rot, scale * 2 / side, trans * 2 / side - 1)
    shading = shade(bird.surface, light)
    seen = picture(
        bird.surface,
        bird.surface.colors * shading[:, None],
        camera,
        height=height,
        width=width,
        supersample=SUPERSAMPLE,
    )
    rgb = seen.over(scenery(rng, height, width)) + rng.normal(0, 0.006, (height, width, 3))
    mask = seen.coverage >= 0.5
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1)
    parts = _key_points(bird, camera, seen.depth, side, scale * 2 / side)
    return Photo(_bytes(rgb), mask, rot, scale, trans + 0.5, box, parts, bird, light, posture.tilt, label)


def novel_views(photo: Photo, count: int) -> dict[str, np.ndarray]:
    """`count` further views around the bird's vertical axis, evenly spread from the photograph's own azimuth."""
    colors = photo.bird.surface.colors * shade(photo.bird.surface, photo.light)[:, None]
    low, high = photo.bird.surface.vertices.min(axis=0), photo.bird.surface.vertices.max(axis=0)
    scale = NOVEL_FILL * 2 / float(np.linalg.norm(high - low))
    stand = _about_x(-photo.tilt)
    forward = photo.rot[2] @ stand.T  # viewing direction of the photograph, the bird's tilt taken out
    start = float(np.arctan2(forward[0], forward[1]))
    rgb, mask, cameras = [], [], []
    for k in range(1, count + 1):
        turn = start + 2 * np.pi * k / (count + 1)
        rot = _about_x(np.radians(12)) @ UPRIGHT @ _about_z(turn) @ stand
        camera = _camera(rot, scale, -scale * (rot[:2] @ (low + high) / 2))
        seen = picture(photo.bird.surface, colors, camera, height=NOVEL_SIZE, width=NOVEL_SIZE, supersample=SUPERSAMPLE)
        rgb.append(_bytes(seen.over(1.0)))
        mask.append(_bytes(seen.coverage))
        cameras.append(camera.to_cmr()[0].numpy())
    return {
        "novel_rgb": np.array(rgb, np.uint8).reshape(count, NOVEL_SIZE, NOVEL_SIZE, 3),
        "novel_mask": np.array(mask, np.uint8).reshape(count, NOVEL_SIZE, NOVEL_SIZE),
        "novel_cameras": np.array(cameras, np.float64).reshape(count, 7),
    }


# ---- Cameras ---------------------------------------------------------------------------------------------------------


def _viewpoint(rng: np.random.Generator, tilt: float) -> Float64[np.ndarray, "3 3"]:
    """Object -> camera, as bird photographs are taken: mostly from a side, at eye level, nearly upright."""
    if rng.random() < 0.7:
        azimuth = rng.choice([-90.0, 90.0]) + rng.normal(0, 25)
    else:
        azimuth = rng.uniform(-180, 180)
    elevation, roll = rng.triangular(-10, 5, 30), np.clip(rng.normal(0, 5), -12, 12)
    turn, rise, roll = np.radians([azimuth, elevation, roll])
    return _about_z(roll) @ _about_x(rise) @ UPRIGHT @ _about_z(turn) @ _about_x(-tilt)


def _from_above(rng: np.random.Generator, tilt: float) -> Float64[np.ndarray, "3"]:
    """Towards the light, object frame: at most 35 degrees from straight above."""
    away, around = np.radians(rng.uniform(0, 35)), rng.uniform(0, 2 * np.pi)
    world = np.array([np.sin(away) * np.cos(around), np.sin(away) * np.sin(around), np.cos(away)])
    return _about_x(-tilt).T @ world


def _about_x(angle: float) -> Float64[np.ndarray, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


def _about_z(angle: float) -> Float64[np.ndarray, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _camera(rot: Float64[np.ndarray, "3 3"], scale: float, shift: Float64[np.ndarray, "2"]) -> Camera:
    quat = rotation.from_matrix(torch.from_numpy(rot)[None])
    scales = torch.tensor([scale], dtype=torch.float64)
    return Camera(quat, scales, torch.from_numpy(shift)[None], torch.zeros_like(scales))


# ---- Annotations -----------------------------------------------------------------------------------------------------


def _key_points(
    bird: Bird, camera: Camera, depth: Float64[np.ndarray, "HS WS"], side: int, ndc_scale: float
) -> Float64[np.ndarray, "3 15"]:
    """Pixel places and visibility; a point is visible where it is not behind all the samples around it."""
    points = in_pixels(camera, bird.surface.vertices[bird.key_points], side * SUPERSAMPLE)
    place = np.floor(points[:, :2]).astype(int)
    behind = np.full(len(points), -np.inf)
    rows, columns = depth.shape
    for dy in (-2, 0, 2):
        for dx in (-2, 0, 2):
            x, y = (place[:, 0] + dx).clip(0, columns - 1), (place[:, 1] + dy).clip(0, rows - 1)
            behind = np.maximum(behind, depth[y, x])
    visible = points[:, 2] <= behind + 0.02 * ndc_scale
    at = points[:, :2].T / SUPERSAMPLE + 0.5  # the first pixel's center is 1
    return np.concatenate([at * visible, visible[None].astype(float)])


def _bytes(image: Float64[np.ndarray, "*S"]) -> UInt8[np.ndarray, "*S"]:
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


# ---- Files -----------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, counts: dict[str, int], num_species: int, seed: int, views: int, photo_size: tuple[int, int]
) -> None:
    images, annotations = {}, {}
    lists = {name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")}
    classes = [f"{k + 1:03d}.{species(k).name}" for k in range(num_species)]
    release = folder / "CUB_200_2011"
    for name in classes:
        (release / "images" / name).mkdir(parents=True)
    for name in ("data", "sfm", "ground_truth"):
        (folder / name).mkdir()

    number, shapes = 0, {}
    for split, count in counts.items():
        images[split], annotations[split], shapes[split] = [], [], []
        for index in range(count):
            number += 1
            photo = take_photo(split, index, seed=seed, num_species=num_species, photo_size=photo_size)
            group = classes[photo.label]
            stem = f"{group[4:]}_{split}_{index:05d}"
            rel_path = f"{group}/{stem}.jpg"
            Image.fromarray(photo.rgb).save(release / "images" / rel_path, quality=95, subsampling=0)
            x1, y1, x2, y2 = photo.box
            lists["images"].append(f"{number} {rel_path}")
            lists["image_class_labels"].append(f"{number} {photo.label + 1}")
            lists["train_test_split"].append(f"{number} {int(split == 'train')}")
            lists["bounding_boxes"].append(f"{number} {x1:.1f} {y1:.1f} {x2 - x1 + 1:.1f} {y2 - y1 + 1:.1f}")
            images[split].append(_image_record(photo, number, rel_path, split))
            annotations[split].append({"rot": photo.rot, "scale": photo.scale, "trans": photo.trans[:, None]})
            shapes[split].append(photo.bird.surface.vertices[photo.bird.key_points].T)
            if split != "train":
                known = {**_truth(photo), **novel_views(photo, views)}
                np.savez_compressed(folder / "ground_truth" / f"{stem}.npz", **known)

    for name, lines in lists.items():
        (release / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (release / "classes.txt").write_text("".join(f"{k + 1} {name}\n" for k, name in enumerate(classes)))
    for of in (images, annotations, shapes):
        of["testval"] = of["val"] + of["test"]
    for split in images:
        shape = np.mean(shapes[split], axis=0)
        mean = {"S": shape, "conv_tri": ConvexHull(shape.T).simplices + 1.0} if split in ("train", "testval") else {}
        _save(folder / "data" / f"{split}_cub_cleaned.mat", {"images": _struct_array(images[split])})
        _save(folder / "sfm" / f"anno_{split}.mat", {"sfm_anno": _struct_array(annotations[split]), **mean})


def _image_record(photo: Photo, number: int, rel_path: str, split: str) -> dict[str, object]:
    height, width = photo.mask.shape
    return {
        "id": float(number),
        "rel_path": rel_path,
        "train": float(split == "train"),
        "test": float(split != "train"),
        "bbox": {key: float(value) for key, value in zip(("x1", "y1", "x2", "y2"), photo.box, strict=True)},
        "width": float(width),
        "height": float(height),
        "parts": photo.parts,
        "mask": photo.mask,
        "class_id": float(photo.label + 1),
    }


def _truth(photo: Photo) -> dict[str, np.ndarray]:
    surface = photo.bird.surface
    quat = rotation.from_matrix(torch.from_numpy(photo.rot)).numpy()
    return {
        "vertices": surface.vertices,
        "faces": surface.faces.astype(np.int32),
        "part": surface.part.astype(np.int16),
        "colors": surface.colors,
        "shading": shade(surface, photo.light),
        "key_points": photo.bird.key_points,
        "rot": photo.rot,
        "quat": quat,
        "scale": np.float64(photo.scale),
        "trans": photo.trans,
    }


def _struct_array(records: list[dict[str, object]]) -> np.ndarray:
    array = np.empty((1, len(records)), [(key, object) for key in records[0]])
    for k, record in enumerate(records):
        array[0, k] = tuple(record.values())
    return array


def _save(path: Path, content: dict[str, np.ndarray]) -> None:
    savemat(path, content, do_compression=True)
