"""What flows through the framework: photographs in, renderings and estimates out.

Images are [B, 3, H, W] in [-1, 1] and masks [B, 1, H, W] in [0, 1], everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from invkit.batch import Batch
from invkit.geometry.camera import Camera


@dataclass(frozen=True)
class Views(Batch):
    """One photograph of each of B objects, with what is known about it.

    Args:
        rgb: the picture, background kept.
        mask: the object's silhouette.
        camera: where it was seen from.
        label: class, 0-based; None where the data has no classes.
        index: position in the data set the views come from.
        guessed: where the camera is a guess and says nothing; None: all are known.
    """

    rgb: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    camera: Camera
    label: Int[Tensor, "B"] | None
    index: Int[Tensor, "B"]
    guessed: Bool[Tensor, "B"] | None = None

    def mirror(self, index_width: int | None = None) -> "Views":
        """The flipped photographs with the matching cameras; see `Camera.mirror` for `index_width`."""
        return replace(self, rgb=self.rgb.flip(-1), mask=self.mask.flip(-1), camera=self.camera.mirror(index_width))


@dataclass(frozen=True)
class Rendering(Batch):
    """A picture of a scene, already over a background: where nothing is hit, `mask` is 0 and `rgb` the background.

    Args:
        mask: silhouette of a mesh, or accumulated opacity of a field.
        soft_mask: silhouette that grades off outside the outline and so has a gradient everywhere (meshes).
        depth: scaled depth s Z of `Camera.project`, larger is farther; 0 where nothing is hit.
        normals: camera axes; unit, or of a field the average of unit ones, weighted by opacity.
        coords: the object-frame position seen at each pixel (the canonical map); of a field weighted by opacity.
        shares: how much of each color of the palette is seen at each pixel; they sum to `mask` (fields).
        face: index of the triangle seen, -1 where nothing is hit (meshes).
        background: what stands behind in `rgb`: 0 mid grey, 1 white.
    """

    rgb: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    soft_mask: Float[Tensor, "B 1 H W"] | None = None
    depth: Float[Tensor, "B 1 H W"] | None = None
    normals: Float[Tensor, "B 3 H W"] | None = None
    coords: Float[Tensor, "B 3 H W"] | None = None
    shares: Float[Tensor, "B K H W"] | None = None
    face: Int[Tensor, "B 1 H W"] | None = None
    background: float = 0.0

    def over(self, background: float) -> Float[Tensor, "B 3 H W"]:
        """The picture over another background, exact at soft outlines too.

        What shows through is exchanged. To composite `rgb` by `mask` once more would weight outlines twice.
        """
        return self.rgb + (background - self.background) * (1 - self.mask)


@dataclass(frozen=True)
class Guess(Batch):
    """What is searched for in each image: what the object is (latent, and class if there are any) and the camera.

    Args:
        posed: of a first guess: False where the image's camera could not be found and is only a place to begin from.
        details: what the photograph itself has decided after the search (`protocols.Refinement`), by name; None where
            the scene is the generator's alone.
    """

    latent: Float[Tensor, "B *L"]
    camera: Camera
    label: Int[Tensor, "B"] | None = None
    posed: Bool[Tensor, "B"] | None = None
    details: Mapping[str, Shaped[Tensor, "B ..."]] | None = None


@dataclass(frozen=True)
class Estimate(Batch):
    """One hypothesis about each image: what the object is, where it is seen from, and how that looks.

    Args:
        steps: of the search that have led to it. A term that draws at random draws by this number, anew in each step.
    """

    latent: Float[Tensor, "B *L"]
    camera: Camera
    scene: Any
    image: Rendering
    label: Int[Tensor, "B"] | None = None
    steps: int = 0

    @property
    def guess(self) -> Guess:
        """The part from which the rest can be made again."""
        return Guess(self.latent, self.camera, self.label)
