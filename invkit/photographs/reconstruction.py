"""What was found for a photograph: cameras, models, pictures and numbers, made when they are asked for."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from trimesh import Trimesh

from invkit.data.dataset import from_square
from invkit.data.folder import square_of
from invkit.evaluation import viewpoints
from invkit.evaluation.evaluator import render
from invkit.export import write_glb
from invkit.images import to_uint8
from invkit.inversion import doubt
from invkit.inversion.inverter import Inverter
from invkit.inversion.records import DOUBTFUL, OK, Trace
from invkit.metrics.iou import iou
from invkit.photographs import panel
from invkit.photographs.silhouette import Photograph
from invkit.protocols import Modeling, Refinement, Renderer
from invkit.types import Estimate, Guess, Views

AROUND = torch.arange(8) * 45.0
"""Sides, in degrees, from all of which an object that is turned fits into its picture."""


@dataclass(frozen=True)
class Mesh:
    """A model as arrays, in the object's own frame, in which the cameras are: of a GLB, (x, y, z) is (x, -z, y) there.

    Args:
        faces: vertex indices, counter-clockwise seen from outside.
        uv: of each vertex in the texture, u right and v up, 0 and 1 at its borders; None where vertices have colors.
        texture: colors in [0, 255], the first row at v = 1.
        colors: of the vertices, in [0, 255]; None where there is a texture.
    """

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    normals: Float[np.ndarray, "V 3"]
    uv: Float[np.ndarray, "V 2"] | None
    texture: UInt8[np.ndarray, "H W 3"] | None
    colors: UInt8[np.ndarray, "V 3"] | None


@dataclass(frozen=True, eq=False)
class Tools:
    """What searches photographs and makes models, pictures and judgments of the results.

    Args:
        renderer: gives the inverter's renderer at another size, pixels along a side.
    """

    inverter: Inverter
    renderer: Callable[[int], Renderer]
    modeling: Modeling
    refinement: Refinement | None
    thresholds: doubt.Thresholds


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What was found for a photograph, and how.

    Args:
        views: the crop that was searched.
        begun: the first guess, and that after its trial (the same without one).
        searched: the result of the search, of which `trace` says how it went.
        refined: what a refinement has made of it, with its details; None without one.
        camera_given: seven numbers, as `camera` is.
        seconds: of the search and what follows it.
    """

    photograph: Photograph
    views: Views
    begun: tuple[Guess, Guess]
    searched: Estimate
    trace: Trace
    refined: Guess | None
    camera_given: Sequence[int | float] | None
    seconds: float
    tools: Tools

    @cached_property
    def found(self) -> Estimate:
        """The result, rendered at the camera of the crop: refined where there is a refinement."""
        if self.refined is None:
            return self.searched
        return render(self.refined, self.tools.inverter.prior, self.tools.inverter.renderer)

    @property
    def camera(self) -> list[float] | None:
        """[s, tx, ty, qw, qx, qy, qz]: a point p of the object is seen at pixel s (R(q) p)_xy + t of the photograph.

        x is right and y down, from its top-left corner. None with perspective; `camera_of_crop` has it.
        """
        if self.inv_focal:
            return None
        camera = self.searched.camera.to("cpu", dtype=torch.float64)
        return from_square(camera, square_of(self.photograph.mask)).to_cmr()[0].tolist()

    @property
    def camera_of_crop(self) -> list[float]:
        """The same for the square that was searched, which runs from -1 to 1."""
        return self.searched.camera.to_cmr()[0].tolist()

    @property
    def inv_focal(self) -> float:
        """1 / focal length in the crop: 0 without perspective."""
        return self.searched.camera.inv_focal.item()

    @property
    def iou(self) -> float:
        """How much of the silhouette and of what the search has found is the same."""
        return self.trace.iou[0, -1].item()

    @property
    def doubts(self) -> list[str]:
        """Reasons not to believe the result, in words."""
        reasons = doubt.doubts_about_mask(self.photograph.mask_given, self.tools.thresholds)
        return reasons + doubt.doubts_about_search(self.iou, self.tools.thresholds)

    @property
    def status(self) -> str:
        """ok; doubtful, where there are `doubts`; or what went wrong."""
        (status,) = self.trace.status()
        return DOUBTFUL if status == OK and self.doubts else status

    @property
    def label(self) -> int | None:
        """The class that was given or found, of a prior that has classes."""
        return None if self.searched.label is None else self.searched.label.item()

    @cached_property
    def model(self) -> Trimesh:
        """What the GLB holds: y up, with texture or vertex colors.

        Raises:
            NoSurface: a radiance field that is nowhere solid.
        """
        return self.tools.modeling(self.found.scene, self.photograph.name)

    @property
    def mesh(self) -> Mesh:
        """The model as arrays.

        Raises:
            NoSurface: see `model`.
        """
        visual, textured = self.model.visual, self.model.visual.kind == "texture"
        picture = np.array(visual.material.baseColorTexture.convert("RGB")) if textured else None
        return Mesh(
            vertices=_z_up(self.model.vertices),
            faces=np.asarray(self.model.faces),
            normals=_z_up(self.model.vertex_normals),
            uv=np.asarray(visual.uv) if textured else None,
            texture=picture,
            colors=None if textured else np.asarray(visual.vertex_colors)[:, :3],
        )

    @torch.no_grad()
    def render(
        self,
        azimuth: int | float | None = None,
        elevation: int | float = 0,
        *,
        size: int = 256,
        background: int | float = 1,
    ) -> UInt8[np.ndarray, "S S 3"]:
        """A picture of the result.

        Args:
            azimuth: degrees by which the object is turned about its up axis, from how the photograph shows it; it is
                then as large as it fits. None, with elevation 0: in its place in the crop.
            elevation: degrees by which the camera is raised.
            background: 1 white, 0 grey, -1 black.
        """
        scene, camera = self.found.scene, self.found.camera
        if azimuth is not None or elevation:
            scene = scene.centered()
            around = viewpoints.raised(viewpoints.orbit(camera, AROUND), elevation)
            camera = viewpoints.raised(viewpoints.orbit(camera, torch.tensor([float(azimuth or 0)])), elevation)
            camera = replace(camera, scale=panel.fitted(scene, around).scale[:1])
        return to_uint8(self.tools.renderer(size)(scene, camera).over(float(background)))[0].cpu().numpy()

    def panel(self) -> UInt8[Tensor, "H W 3"]:
        """What was seen and made at each step, as a picture with words."""
        prior, renderer = self.tools.inverter.prior, self.tools.inverter.renderer
        first, tried = self.begun
        steps = {"first guess": render(first, prior, renderer)}
        if tried is not first:
            steps["after trial"] = render(tried, prior, renderer)
        steps["result"] = self.searched
        if self.refined is not None:
            steps["refined"] = self.found
        return panel.panel(self.photograph, self.views, steps, self.tools.inverter)

    def write_glb(self, path: str | os.PathLike) -> None:
        """The model for any 3D viewer.

        Raises:
            NoSurface: see `model`.
        """
        write_glb(Path(path), self.model)

    def numbers(self) -> dict[str, Any]:
        """Status, doubts, overlaps, cameras and terms, as result.json has them."""
        before = render(self.begun[0], self.tools.inverter.prior, self.tools.inverter.renderer)
        terms = {name: values[0, -1].item() for name, values in self.trace.terms.items()}
        return {
            "status": self.status,
            "doubts": self.doubts,
            "mask_from": self.photograph.source,
            "iou_before": iou(before.image.mask, self.views.mask).item(),
            "iou_after": self.iou,
            "label": self.label,
            "label_given": self.views.label is not None,
            "camera": self.camera,
            "camera_of_crop": self.camera_of_crop,
            "inv_focal_of_crop": self.inv_focal,
            "camera_given": self.camera_given is not None,
            "refined": None if self.refined is None else self.tools.refinement.name,
            "objective": {name: value if math.isfinite(value) else None for name, value in terms.items()},
            "seconds": self.seconds,
        }


def _z_up(vectors: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Points or directions of a file in the object's frame."""
    x, z, minus_y = np.asarray(vectors).T
    return np.stack([x, -minus_y, z], axis=1)
