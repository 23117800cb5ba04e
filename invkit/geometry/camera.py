"""One camera for weak and full perspective.

Image coordinates (NDC) are x right, y **down**, both in [-1, 1] across the image whatever its size; z points away from
the viewer. With (X, Y, Z) = R p the point in camera axes, scale s, shift t, inverse focal length k = 1/f and principal
point c, a point lands at

    x = (s X + t_x + c_x k s Z) / (1 + k s Z)          and the same with Y for y.

k = 0 is weak perspective (c has no effect then); c = 0, the centered pinhole, is the pose of both papers. The principal
point is there so that cropping a perspective photograph is exact rather than approximate.

Pixel index i of an image W wide sits at 2 (i + offset) / W - 1. Rasterization uses offset 1/2 (pixel centers); CMR's
annotations and the point sets of MeshInversion use 0.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.batch import Batch
from invkit.geometry import rotation

MAX_LOG_FOCAL = 4.0  # z0 is kept in [-4, 4], which is f in [1.018, 55.6]


@dataclass(frozen=True)
class Rays(Batch):
    """Half-lines in the object frame; `directions` are unit, `origins` lie on the plane through the object's center."""

    origins: Float[Tensor, "B H W 3"]
    directions: Float[Tensor, "B H W 3"]


@dataclass(frozen=True)
class Camera(Batch):
    """The cameras of a batch of images; see the module for the formula.

    Args:
        quat: object -> camera rotation, unit, (w, x, y, z).
        scale: NDC per object unit at the depth of the object's center, positive.
        shift: where the object's center lands, NDC (CMR's translation).
        inv_focal: 1 / f, f in NDC (twice the focal length over the image width); 0 is weak perspective.
        center: principal point, NDC; zero where not given.
    """

    quat: Float[Tensor, "B 4"]
    scale: Float[Tensor, "B"]
    shift: Float[Tensor, "B 2"]
    inv_focal: Float[Tensor, "B"]
    center: Float[Tensor, "B 2"] | None = None

    def __post_init__(self) -> None:
        if self.center is None:
            object.__setattr__(self, "center", torch.zeros_like(self.shift))

    def in_camera(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        """s R p: camera axes, NDC units, the object's center at the origin, z away from the viewer."""
        return self.scale[:, None, None] * rotation.rotate(self.quat, points)

    def project(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        """x, y in NDC and the scaled depth s Z (larger is farther; 0 at the object's center)."""
        scaled = self.in_camera(points)
        depth = scaled[..., 2:]
        slope = self.inv_focal[:, None, None] * depth
        xy = (scaled[..., :2] + self.shift[:, None] + self.center[:, None] * slope) / (1 + slope)
        return torch.cat([xy, depth], dim=-1)

    def rays(self, size: int | tuple[int, int], offset: float = 0.5) -> Rays:
        """One ray through every pixel of a (height, width) image.

        Args:
            offset: where in its cell a pixel lies: 0.5 its center, 0 its top-left corner.
        """
        height, width = (size, size) if isinstance(size, int) else size
        like = {"dtype": self.shift.dtype, "device": self.shift.device}
        x = (torch.arange(width, **like) + offset) * (2 / width) - 1
        y = (torch.arange(height, **like) + offset) * (2 / height) - 1
        pixel = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(1, -1, 2)
        # Points that land on the pixel: s X = (u - t) + (u - c) k (s Z); s Z is the free parameter.
        count = pixel.shape[1]
        at_center = torch.cat([pixel - self.shift[:, None], self.shift.new_zeros(len(self), count, 1)], dim=-1)
        per_depth = torch.cat(
            [
                (pixel - self.center[:, None]) * self.inv_focal[:, None, None],
                self.shift.new_ones(len(self), count, 1),
            ],
            dim=-1,
        )
        back = rotation.conjugate(self.quat)
        origins = rotation.rotate(back, at_center / self.scale[:, None, None])
        directions = torch.nn.functional.normalize(rotation.rotate(back, per_depth), dim=-1)
        return Rays(origins.view(-1, height, width, 3), directions.view(-1, height, width, 3))

    def crop(self, box: Float[Tensor, "B 4"]) -> "Camera":
        """The camera of the picture cut to `box` and stretched to [-1, 1].

        Args:
            box: left, top, right, bottom in NDC of the uncut picture; must be square, as a camera has one scale.

        Raises:
            ValueError: a box is empty or not square.
        """
        low, high = box[:, :2], box[:, 2:]
        side = high - low
        if bool((side <= 0).any()) or bool(((side[:, 0] - side[:, 1]).abs() > 1e-4 * side.amax(1)).any()):
            raise ValueError(f"a crop box must be square with right > left and bottom > top; got {box.tolist()}")
        middle, zoom = (low + high) / 2, 2 / side[:, :1]
        zoomed = zoom.squeeze(1)
        return replace(
            self,
            scale=self.scale * zoomed,
            shift=(self.shift - middle) * zoom,
            inv_focal=self.inv_focal / zoomed,
            center=(self.center - middle) * zoom,
        )

    def mirror(self, index_width: int | None = None) -> "Camera":
        """The camera of the horizontally flipped picture, for an object symmetric in x.

        Args:
            index_width: image width in pixels, where shifts follow CMR's index convention (offset 0): flipping the
                columns then moves x to -x - 2/W. None is the exact mirror of the pixel-center convention.
        """
        flip = self.shift.new_tensor([-1.0, 1.0])
        drift = self.shift.new_tensor([0.0 if index_width is None else -2.0 / index_width, 0.0])
        return replace(
            self, quat=rotation.mirror(self.quat), shift=self.shift * flip + drift, center=self.center * flip + drift
        )

    def normalized(self) -> "Camera":
        """The same camera with a unit quaternion and a positive scale, after a gradient step has moved both freely."""
        return replace(self, quat=rotation.normalize(self.quat), scale=self.scale.abs())

    # ---- CMR: weak perspective as seven numbers ------------------------------------------------------------------

    @classmethod
    def from_cmr(cls, vector: Float[Tensor, "B 7"]) -> "Camera":
        """From CMR's (s, t_x, t_y, q_w, q_x, q_y, q_z)."""
        scale, shift, quat = vector[:, 0], vector[:, 1:3], vector[:, 3:]
        return cls(quat, scale, shift, torch.zeros_like(scale))

    def to_cmr(self) -> Float[Tensor, "B 7"]:
        """CMR's seven numbers; the perspective is dropped, which is exact only where `inv_focal` is 0."""
        return torch.cat([self.scale[:, None], self.shift, self.quat], dim=1)

    # ---- Augmented weak perspective: (z0, t, s, q), f = 1 + exp(z0) -----------------------------------------------

    @classmethod
    def from_augmented(
        cls,
        z0: Float[Tensor, "B"] | None,
        shift: Float[Tensor, "B 2"],
        scale: Float[Tensor, "B"],
        quat: Float[Tensor, "B 4"],
    ) -> "Camera":
        """From the pose of bootstrapped radiance-field inversion (appendix A.1); z0 None is weak perspective."""
        inv_focal = torch.zeros_like(scale) if z0 is None else 1 / (1 + z0.exp())
        return cls(quat, scale, shift, inv_focal)

    def to_augmented(self) -> tuple[Float[Tensor, "B"], Float[Tensor, "B 2"], Float[Tensor, "B"], Float[Tensor, "B 4"]]:
        """(z0, t, s, q) with z0 = ln(f - 1) clamped to [-4, 4], the range the released code keeps it in.

        Weak perspective (f infinite) becomes z0 = 4; ask `inv_focal` first where the difference matters.
        """
        z0 = torch.log((1 / self.inv_focal - 1).clamp(min=0)).clamp(-MAX_LOG_FOCAL, MAX_LOG_FOCAL)
        return z0, self.shift, self.scale, self.quat

    # ---- Camera-to-world matrix with OpenGL camera axes, plus focal length ----------------------------------------

    @classmethod
    def from_matrix(
        cls,
        matrix: Float[Tensor, "B 4 4"],
        focal: Float[Tensor, "B"] | None = None,
        center: Float[Tensor, "B 2"] | None = None,
    ) -> "Camera":
        """From camera-to-world matrices with OpenGL axes (x right, y up, looking along -z), as SRN and CARLA give.

        Args:
            focal: focal length over image width. None: the matrices are weak perspective in the released code's form,
                divided as a whole by the scale, so that element [3, 3] is 1 / s.
            center: principal point, NDC.

        Raises:
            ValueError: the world's origin is not in front of a perspective camera.
        """
        to_opencv = matrix.new_tensor([1.0, -1.0, -1.0])
        weight = matrix[:, 3, 3]
        world_to_camera = (matrix[:, :3, :3] / weight[:, None, None]).transpose(1, 2) * to_opencv[:, None]
        position = matrix[:, :3, 3:] / weight[:, None, None]
        offset = -(world_to_camera @ position).squeeze(-1)
        quat = rotation.from_matrix(world_to_camera)
        if focal is None:
            scale = 1 / weight
            return cls(quat, scale, offset[:, :2], torch.zeros_like(scale), center)
        if bool((offset[:, 2] <= 0).any()):
            raise ValueError("the world's origin lies behind a perspective camera: its scale would not be positive")
        scale = 2 * focal / offset[:, 2]
        origin = offset[:, :2] * scale[:, None]
        shift = origin if center is None else origin + center
        return cls(quat, scale, shift, 1 / (2 * focal), center)

    def to_matrix(self, distance: float = 10.0) -> tuple[Float[Tensor, "B 4 4"], Float[Tensor, "B"]]:
        """Camera-to-world matrices with OpenGL axes, and focal lengths over image width.

        A batch is weak or full perspective as a whole. Weak: the camera plane lies `distance` / s object units before
        the center, the matrix is divided by the scale, and the focal lengths are infinite.

        Raises:
            ValueError: weak and full perspective are mixed.
        """
        weak = self.inv_focal == 0
        if bool(weak.any()) and not bool(weak.all()):
            raise ValueError("this batch mixes weak and full perspective; convert the two kinds apart")
        all_weak = len(self) > 0 and bool(weak.all())
        depth = torch.full_like(self.scale, distance) if all_weak else 1 / (self.inv_focal * self.scale)
        # The released weak form keeps t in NDC beside the constant depth and lets the division by s scale both.
        shift = self.shift if all_weak else (self.shift - self.center) / self.scale[:, None]
        offset = torch.cat([shift, depth[:, None]], dim=1)
        axes = rotation.to_matrix(self.quat).transpose(1, 2)
        matrix = torch.zeros(len(self), 4, 4, dtype=self.scale.dtype, device=self.scale.device)
        matrix[:, :3, :3] = axes * self.scale.new_tensor([1.0, -1.0, -1.0])
        matrix[:, :3, 3:] = -(axes @ offset[..., None])
        matrix[:, 3, 3] = 1
        if all_weak:
            matrix = matrix / self.scale[:, None, None]
        return matrix, 1 / (2 * self.inv_focal)
