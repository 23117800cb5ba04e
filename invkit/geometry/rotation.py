"""Rotations as quaternions: scalar first (w, x, y, z), Hamilton product, acting on column vectors from the left.

A quaternion q and -q are the same rotation; functions that build one from a matrix return the one with w >= 0.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Quaternion = Float[Tensor, "*B 4"]


def identity(count: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Quaternion:
    """`count` times the rotation that does nothing, [count, 4]."""
    quat = torch.zeros(count, 4, device=device, dtype=dtype)
    quat[:, 0] = 1
    return quat


def normalize(quat: Quaternion) -> Quaternion:
    """The unit quaternion of the same direction; a zero quaternion stays zero."""
    return torch.nn.functional.normalize(quat, dim=-1, eps=1e-12)


def multiply(left: Quaternion, right: Quaternion) -> Quaternion:
    """Hamilton product: first `right`, then `left`."""
    lw, lx, ly, lz = left.unbind(-1)
    rw, rx, ry, rz = right.unbind(-1)
    return torch.stack(
        [
            lw * rw - lx * rx - ly * ry - lz * rz,
            lw * rx + lx * rw + ly * rz - lz * ry,
            lw * ry - lx * rz + ly * rw + lz * rx,
            lw * rz + lx * ry - ly * rx + lz * rw,
        ],
        dim=-1,
    )


def conjugate(quat: Quaternion) -> Quaternion:
    """The inverse of a unit quaternion."""
    return quat * quat.new_tensor([1.0, -1.0, -1.0, -1.0])


def mirror(quat: Quaternion) -> Quaternion:
    """The rotation F R F with F = diag(-1, 1, 1): how a flipped picture shows an object symmetric in x."""
    return quat * quat.new_tensor([1.0, 1.0, -1.0, -1.0])


def rotate(quat: Float[Tensor, "B 4"], points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
    """v + 2 (w (u x v) + u x (u x v)), the rotation of each point by its image's unit quaternion.

    The quaternion is not normalized here: away from unit length the map is no longer a rotation, as in the released
    MeshInversion code (its camera drifts during the search). Callers that optimize a quaternion normalize it.
    """
    scalar, vector = quat[:, None, :1], quat[:, None, 1:].expand_as(points)
    cross = torch.linalg.cross(vector, points)
    return points + 2 * (scalar * cross + torch.linalg.cross(vector, cross))


def to_matrix(quat: Quaternion) -> Float[Tensor, "*B 3 3"]:
    """The matrix of a unit quaternion."""
    w, x, y, z = quat.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def from_matrix(matrix: Float[Tensor, "*B 3 3"]) -> Quaternion:
    """The unit quaternion with w >= 0 of a proper rotation matrix.

    All four of the classical formulas are evaluated and the best conditioned one (largest pivot) is taken, so no
    rotation is near a singularity. A matrix that is only nearly orthonormal gives a unit quaternion near it.

    Raises:
        ValueError: a matrix has a determinant that is not positive (a reflection is no rotation).
    """
    if matrix.numel() and bool((torch.linalg.det(matrix) <= 0).any()):
        raise ValueError("a rotation matrix must have determinant +1; this one mirrors space or is singular")
    m = matrix
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    pivots = torch.stack([1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], dim=-1)
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    candidates = torch.stack(
        [
            torch.stack([pivots[..., 0], wx, wy, wz], dim=-1),
            torch.stack([wx, pivots[..., 1], xy, xz], dim=-1),
            torch.stack([wy, xy, pivots[..., 2], yz], dim=-1),
            torch.stack([wz, xz, yz, pivots[..., 3]], dim=-1),
        ],
        dim=-2,
    )
    best = pivots.argmax(dim=-1)[..., None, None].expand(*pivots.shape[:-1], 1, 4)
    quat = normalize(candidates.gather(-2, best).squeeze(-2))
    return torch.where(quat[..., :1] < 0, -quat, quat)


def from_axis_angle(axis: Float[Tensor, "*B 3"], degrees: Float[Tensor, "*B"]) -> Quaternion:
    """The rotation by `degrees` about `axis` (any length but zero), counter-clockwise seen from its tip."""
    half = degrees * (math.pi / 360)
    return torch.cat(
        [half.cos()[..., None], half.sin()[..., None] * torch.nn.functional.normalize(axis, dim=-1)], dim=-1
    )


def angle(first: Quaternion, second: Quaternion) -> Float[Tensor, "*B"]:
    """Geodesic angle between two rotations, degrees in [0, 180].

    Taken from the relative quaternion with atan2, which is exact near 0, where the usual arc cosine is not.
    """
    relative = multiply(conjugate(normalize(first)), normalize(second))
    return torch.atan2(relative[..., 1:].norm(dim=-1), relative[..., 0].abs()) * (360 / math.pi)


def random(count: int, rng: torch.Generator) -> Float[Tensor, "count 4"]:
    """Rotations drawn uniformly (normalized Gaussian quaternions)."""
    return normalize(torch.randn(count, 4, generator=rng, device=rng.device))
