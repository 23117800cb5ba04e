"""A rasterizer that looks at every face for every pixel, float64 numpy, written from the published kernel's rules.

Slow and plain: what the fast one is compared with. Axes: x right, y up, larger z nearer; row 0 is the top.
"""

import numpy as np


def pixel_centers(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    x = (2 * np.arange(width) + 1 - width) / width
    y = (height - 1 - 2 * np.arange(height)) / height
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def nearest_faces(
    corner_xy: np.ndarray, corner_z: np.ndarray, normal_z: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Face index (-1: none), barycentric weights and depth at every pixel, from [F, 3, 2], [F, 3] and [F]."""
    x, y = pixel_centers(height, width)
    face = np.full((height, width), -1)
    depth = np.full((height, width), -np.inf)
    weights = np.zeros((height, width, 3))
    for index, (corners, z) in enumerate(zip(corner_xy, corner_z, strict=True)):
        (xmin, ymin), (xmax, ymax) = corners.min(0), corners.max(0)
        (ax, ay), (bx, by), (cx, cy) = corners
        m, p, n, q = bx - ax, by - ay, cx - ax, cy - ay
        area = m * q - n * p
        if normal_z[index] < 0 or area == 0:
            continue
        s, t = x - ax, y - ay
        w1, w2 = (s * q - n * t) / area, (m * t - s * p) / area
        w = np.stack([1 - w1 - w2, w1, w2], axis=-1)
        here = (x >= xmin) & (x < xmax) & (y >= ymin) & (y < ymax) & (w >= 0).all(-1)
        here &= (w * z).sum(-1) > depth
        face[here], depth[here], weights[here] = index, (w * z).sum(-1)[here], w[here]
    return face, weights, depth


def soft_mask(
    corner_xy: np.ndarray, face: np.ndarray, *, sigma_inv: float = 7000.0, box: float = 0.02, max_faces: int = 30
) -> np.ndarray:
    """The soft silhouette of faces [F, 3, 2] around the covered pixels of `face` [H, W]."""
    x, y = pixel_centers(*face.shape)
    clear, count = np.ones(face.shape), np.zeros(face.shape, dtype=int)
    for corners in corner_xy:
        (xmin, ymin), (xmax, ymax) = corners.min(0) - box, corners.max(0) + box
        here = (x >= xmin) & (x < xmax) & (y >= ymin) & (y < ymax) & (face < 0) & (count < max_faces)
        count += here
        squared = np.full(face.shape, np.inf)
        for k in range(3):
            (px, py), (qx, qy) = corners[k], corners[(k + 1) % 3]
            squared = np.minimum(squared, (x - px) ** 2 + (y - py) ** 2)
            length = (qx - px) ** 2 + (qy - py) ** 2
            if length == 0:
                continue
            cross = (qx - px) * (y - py) - (qy - py) * (x - px)
            foot = ((x - px) * (qx - px) + (y - py) * (qy - py)) / length
            squared = np.where((foot >= 0) & (foot <= 1), np.minimum(squared, cross**2 / length), squared)
        clear = np.where(here, clear * (1 - np.exp(-sigma_inv * squared)), clear)
    return np.where(face >= 0, 1.0, 1 - clear)


def first_hits(
    origins: np.ndarray, directions: np.ndarray, triangles: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each half-line [N, 3] first meets a triangle [F, 3, 3] from its front: (hit or not, face, point).

    The front is where the direction opposes the counter-clockwise normal. What lies before the origin counts too.
    """
    best = np.full(len(origins), np.inf)
    face = np.full(len(origins), -1)
    for index, (a, b, c) in enumerate(triangles):
        normal = np.cross(b - a, c - a)
        facing = directions @ normal
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = ((a - origins) @ normal) / facing
        point = origins + np.where(np.isfinite(distance), distance, 0)[:, None] * directions
        inside = np.isfinite(distance) & (facing < 0)
        for p, q in ((a, b), (b, c), (c, a)):
            inside &= np.cross(q - p, point - p) @ normal >= 0
        closer = inside & (distance < best)
        best[closer], face[closer] = distance[closer], index
    hit = face >= 0
    return hit, face, origins + np.where(hit, best, 0)[:, None] * directions
