"""Files of detected objects and of their cameras, fabricated as textured-3d-gan publishes them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PREFIXES = {"imagenet": "images/", "p3d": "PASCAL3D+_release1.1/Images/"}
POSES = {"imagenet": "multitpl", "p3d": "singletpl"}


@dataclass
class Object:
    """One detected object; it has a camera where `posed`."""

    path: str
    pixels: np.ndarray
    mask: np.ndarray
    box: tuple[float, float, float, float]
    posed: bool


def objects(folder: str = "n02814533", count: int = 5, seed: int = 0) -> list[Object]:
    """Wide, tall and odd photographs; the third and the fourth object are in the same one; the second has no camera."""
    rng = np.random.default_rng(seed)
    made: list[Object] = []
    for i, (height, width) in enumerate([(40, 60), (51, 38), (45, 45), (45, 45), (33, 48)][:count]):
        low = rng.uniform(2, 12, 2)
        box = (*low, *(low + rng.uniform(14, 22, 2)))
        ys, xs = np.mgrid[:height, :width]
        mask = (abs(xs - (box[0] + box[2]) / 2) / (box[2] - box[0])) + abs(ys - (box[1] + box[3]) / 2) / (
            box[3] - box[1]
        ) <= 0.5
        pixels = made[2].pixels if i == 3 else rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        made.append(Object(f"{folder}/{folder}_{10 + i - (i == 3)}.JPEG", pixels, mask, box, i != 1))
    return made


def encoded(mask: np.ndarray) -> dict:
    """COCO's dictionary of a mask, by counting pixels one after another."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1).astype(int).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    text = ""
    for i, run in enumerate(runs):
        number, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & 16 else 0)
            text += chr(48 + group + 32 * more)
    return {"size": list(mask.shape), "counts": text.encode()}


def entry(kind: str, i: int, one: Object) -> dict:
    """What detections.npy says about an object, with fields that nothing here needs."""
    part = {"class": "wheel", "class_id": 31, "score": 0.5, "mask": encoded(one.mask), "frequency": np.float64(0.5)}
    return {
        "id": i,
        "class": "car",
        "class_id": 3,
        "image_height": one.mask.shape[0],
        "image_width": one.mask.shape[1],
        "image_path": f"datasets/{kind}/{PREFIXES[kind]}{one.path}",
        "score": np.float32(0.98),
        "bbox": np.array([one.box], dtype=np.float32),
        "mask": encoded(one.mask),
        "num_parts": 1,
        "parts": [{**part, "bbox": np.array([one.box], dtype=np.float32)}],
    }


def poses(made: list[Object], seed: int = 1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    indices = torch.tensor([i for i, one in enumerate(made) if one.posed])
    count = len(indices)
    return {
        "indices": indices,
        "z0": torch.rand(count, 1, generator=rng) * 3 - 1,
        "s": torch.rand(count, 1, generator=rng) * 0.3 + 0.2,
        "t": torch.rand(count, 2, generator=rng) * 0.4 - 0.2,
        "R": torch.nn.functional.normalize(torch.randn(count, 4, generator=rng), dim=1),
        "w": torch.ones(count, 4),
        "iou": torch.rand(count, 1, generator=rng),
    }


def files(root: Path, kind: str, category: str = "car") -> tuple[Path, Path]:
    folder = root / f"{kind}_{category}"
    return folder / "detections.npy", folder / f"poses_estimated_{POSES[kind]}_perspective.bin"


def write(
    root: Path, kind: str = "imagenet", made: list[Object] | None = None, *, category: str = "car"
) -> list[Object]:
    """The published layout; gives the objects, with the pixels that JPEG leaves of them."""
    made = objects("car_imagenet" if kind == "p3d" else "n02814533") if made is None else made
    detections_npy, poses_bin = files(root, kind, category)
    detections_npy.parent.mkdir(parents=True, exist_ok=True)
    np.save(detections_npy, np.array([entry(kind, i, one) for i, one in enumerate(made)], dtype=object))
    torch.save(poses(made), poses_bin)
    for one in made:
        place = photograph(root, kind, one)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one.pixels).save(place, quality=95, subsampling=0)
    for one in made:
        one.pixels = np.asarray(Image.open(photograph(root, kind, one)))
    return made


def photograph(root: Path, kind: str, one: Object) -> Path:
    return root / PREFIXES[kind] / one.path


def write_carla(root: Path, count: int = 3, size: int = 32) -> list[tuple[np.ndarray, np.ndarray]]:
    """GRAF's layout: pixels and camera-to-world of each picture; 30 degrees of view, 10 from the center, z up."""
    rng, made = np.random.default_rng(5), []
    (root / "carla_poses").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((size, size, 4), 255, np.uint8)
        pixels[size // 4 : size // 2, size // 4 : -size // 4, :3] = rng.integers(0, 250, (size // 4, size // 2, 3))
        away = np.array([np.cos(2.0 * i + 0.3), np.sin(2.0 * i + 0.3), 0.4 + 0.1 * i])
        away /= np.linalg.norm(away)
        right = np.cross([0, 0, 1], away)
        right /= np.linalg.norm(right)
        matrix = np.stack([right, np.cross(away, right), away, 10 * away], axis=1)
        Image.fromarray(pixels).save(root / f"{i:06d}.png")
        np.save(root / "carla_poses" / f"{i:06d}_extrinsics.npy", matrix)
        made.append((pixels, matrix))
    focal = size / 2 / np.tan(np.radians(15))
    lens = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    np.save(root / "carla_poses" / "intrinsics.npy", lens[None, None])
    return made
