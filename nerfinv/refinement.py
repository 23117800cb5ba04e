"""Pivotal tuning of radiance fields (Roich et al., "Pivotal Tuning for Latent-based Editing of Real Images", 2021).

No latent draws a given photograph exactly. The object that was found is therefore taken as a pivot, about which the
model is bent a little until it does. The paper bends the weights of the generator, for one image at a time. Here it is
the object itself, its planes and its palette: that can be done for many images side by side, and what is kept of each
is small.

A photograph knows one side. So only what it shows follows it: colors and silhouette of the rendering from the found
camera. On the surface that it does not show colors stay those of the pivot, or become those of the mirrored place where
the photograph shows that, and signed distances stay everywhere unless the silhouette asks for others. These are the
paper's locality term: there it is said in renderings of nearby latents, here in points of the object.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from invkit.features.lpips import LPIPS
from invkit.geometry import rotation
from invkit.protocols import Prior
from invkit.types import Guess, Views
from nerfinv.changes import Change, GeneratorChange, PlaneChange
from nerfinv.evidence import SOLID, Look, Looks
from nerfinv.field import OpenField, RadianceField, wide_sigmoid
from nerfinv.prior import FieldPrior
from nerfinv.renderers.volume import VolumeRenderer, resized


class PivotalTuning:
    """What each photograph adds to the planes and the palette of the object that was found for it.

    First the palette: the colors that fit best with the shares of them that are seen, a linear problem. Then Adam on
    planes and palette together.

    Args:
        steps: of Adam.
        rate: of the planes at first, in standard deviations of an object's own plane features; rates fall to 0.
        palette_rate: of the palette at first, colors in [-1, 1].
        palette_pull: how much the palette clings to the pivot's in the linear problem, in mean shares of a color: one
            that covers this share of the object comes half of the way.
        silhouette: weight of the mean squared difference of the masks; that of colors, where mean absolute
            differences are compared, is 1.
        perceptual: LPIPS network; None leaves that term out.
        perceptual_weight: its weight.
        locality: weight of the mean squared difference of colors on the surface that the photograph does not show.
        geometry: weight of the mean squared change of signed distances, object units.
        bending: weight of the mean squared slope of this change at the surface: what keeps a smooth surface smooth.
        decay: weight of the mean square of the planes' change, in their standard deviations.
        mirror: for objects that are symmetric in x: what is not shown takes the colors of its mirror image, where the
            photograph shows that.
        views: from which the surface is collected, around the object.
        points: on the surface, and as many in the box, of each object.
    """

    name = "pivotal"

    def __init__(
        self,
        *,
        steps: int = 40,
        rate: float = 0.03,
        palette_rate: float = 0.01,
        palette_pull: float = 0.02,
        silhouette: float = 1.0,
        perceptual: LPIPS | None = None,
        perceptual_weight: float = 0.1,
        locality: float = 1.0,
        geometry: float = 100.0,
        bending: float = 1.0,
        decay: float = 0.01,
        mirror: bool = True,
        views: int = 8,
        points: int = 1024,
        seed: int = 0,
    ) -> None:
        self.steps, self.rate, self.palette_rate, self.palette_pull = steps, rate, palette_rate, palette_pull
        self.silhouette, self.perceptual, self.perceptual_weight = silhouette, perceptual, perceptual_weight
        self.locality, self.geometry, self.bending, self.decay = locality, geometry, bending, decay
        self.mirror, self.views, self.points, self.seed = mirror, views, points, seed

    @torch.no_grad()
    def __call__(
        self, prior: Prior[RadianceField], renderer: VolumeRenderer, guess: Guess, views: Views
    ) -> dict[str, Tensor]:
        """The details of each image: "planes", [B, 3, C, R, R], and, of fields that have one, "palette", [B, K, 3].

        `RadianceField.with_details` adds them. An image whose objective or gradient is not finite has zeros.

        Args:
            renderer: of the search; the photographs may be larger than its pictures.
        """
        found = prior.decode(guess.latent, guess.label).detach()
        looks = Looks(renderer, guess.camera.detach(), views)
        change = self.change(prior, guess, found)
        if self.steps:
            change.palette_to(self._fitted_palette(found, looks))
            pivot = found.with_details(change.details())
            surface = self._surface(pivot, looks)
            beside, space = self._beside(pivot, surface), self._space(pivot)
            for number, look in enumerate(looks.some(self.steps)):
                # Rates end near 0: what the last steps leave in single texels would be a rough surface.
                share = (1 + math.cos(math.pi * number / self.steps)) / 2
                with torch.enable_grad():
                    value = self._objective(change, look, surface, beside, space)
                    change.step(value, share * self.rate, share * self.palette_rate)
        return change.details()

    def change(self, prior: Prior[RadianceField], guess: Guess, found: RadianceField) -> Change:
        """What is bent, with nothing bent yet."""
        return PlaneChange(found)

    def _fitted_palette(self, found: RadianceField, looks: Looks) -> Float[Tensor, "B K 3"] | None:
        """What to add to the palette: ridge regression of what the rendering misses on the shares that are seen."""
        if found.palette is None:
            return None
        look = looks.whole
        image = look.renderer(found, look.camera, extras=frozenset({"shares"}))
        shares = image.shares.flatten(2).double()
        weight = (look.mask * image.mask).flatten(2).double()
        missing = (look.rgb - image.rgb).flatten(2).double()
        seen = (weight * shares) / weight.sum(dim=2, keepdim=True).clamp(min=1e-6)
        pull = self.palette_pull * torch.eye(shares.shape[1], dtype=torch.double, device=shares.device)
        # An image that is not finite is left out later; here it must not stop the others.
        normal = (seen @ shares.transpose(1, 2)).nan_to_num(0.0, 0.0, 0.0) + pull
        fitted = torch.linalg.solve(normal, (seen @ missing.transpose(1, 2)).nan_to_num(0.0, 0.0, 0.0))
        return fitted.to(found.palette.dtype)

    def _objective(
        self, change: Change, look: Look, surface: "_Surface", beside: "_Places", space: "_Places"
    ) -> Float[Tensor, "B"]:
        """What is minimized, for each image."""
        field = change.field()
        image = look.renderer(field, look.camera)
        area = look.mask.flatten(1).mean(dim=1).clamp(min=1e-3)
        # Relative to the object's size in the picture, as the terms of points are relative to the object.
        value = (image.rgb - look.rgb).abs().flatten(1).mean(dim=1) / area
        value = value + self.silhouette * (image.mask - look.mask).square().flatten(1).mean(dim=1) / area
        if self.perceptual is not None:
            value = value + self.perceptual_weight * self.perceptual(image.rgb, look.rgb)
        opened = field.opened()
        own, attributes = opened.decoded(surface.points.flatten(0, 1), surface.scene)
        color = _color(field, attributes, surface).view_as(surface.color)
        unlike = (color - surface.color).square().sum(dim=2) * surface.hidden
        value = value + self.locality * unlike.mean(dim=1)
        moved = own.view_as(surface.value) - surface.value
        beside, elsewhere = (points.moved(opened) for points in (beside, space))
        value = value + self.geometry * (moved.square().mean(dim=1) + elsewhere.square().mean(dim=1))
        slope = (beside - moved) / self.reach(field)
        value = value + self.bending * slope.square().mean(dim=1)
        return value + self.decay * change.size()

    def _surface(self, pivot: RadianceField, looks: Looks) -> "_Surface":
        """Points on the surface from all around, and what is wanted of them."""
        count, like = len(pivot), pivot.planes
        rng = torch.Generator().manual_seed(self.seed)
        turns = rotation.random(self.views, rng).to(like)
        camera = looks.whole.camera
        nowhere = torch.zeros_like(camera.shift)
        around = replace(camera, shift=nowhere, center=nowhere).repeat(self.views)
        around = replace(around, quat=turns.repeat(count, 1))
        # Enough pixels that an object of a quarter of the picture has the points.
        renderer = resized(looks.renderer, max(8, math.ceil(2 * math.sqrt(self.points / self.views))))
        image = renderer(pivot.repeat(self.views), around, extras=frozenset({"coords"}))
        solid = (image.mask > SOLID).squeeze(1).unflatten(0, (count, self.views)).flatten(1)
        places = (image.coords / image.mask.clamp(min=SOLID)).unflatten(0, (count, self.views))
        places = places.permute(0, 1, 3, 4, 2).flatten(1, 3)
        # The same order for every image, so that an image's points are its own; what is solid comes first.
        order = torch.rand(places.shape[1], generator=rng).to(like)
        chosen = (solid * (1 + order)).topk(min(self.points, places.shape[1]), dim=1).indices
        points = places.gather(1, chosen[..., None].expand(-1, -1, 3)).nan_to_num(0.0, 0.0, 0.0)
        axis = points.new_tensor([0.0, 0.0, 1.0]).expand(len(around), 1, 3)
        directions = rotation.rotate(rotation.conjugate(around.quat), axis).squeeze(1)
        pixels = renderer.size**2
        directions = directions.unflatten(0, (count, self.views))
        directions = directions.gather(1, (chosen // pixels)[..., None].expand(-1, -1, 3))
        on_surface = solid.gather(1, chosen).to(like)
        scene = torch.arange(count, device=like.device).repeat_interleave(points.shape[1])
        value, attributes = pivot.opened().decoded(points.flatten(0, 1), scene)
        surface = _Surface(points, directions, scene, value.view(points.shape[:2]), points, on_surface)
        color = _color(pivot, attributes, surface).view_as(points)
        shown = looks.shown(pivot, points)
        if self.mirror:
            mirrored = points * points.new_tensor([-1.0, 1.0, 1.0])
            mirrored = looks.shown(pivot, mirrored)
            color = torch.lerp(color, mirrored.color, mirrored.trust[..., None])
        return replace(surface, color=color, hidden=on_surface * shown.behind)

    def _beside(self, pivot: RadianceField, surface: "_Surface") -> "_Places":
        """A point in the neighborhood of each on the surface."""
        rng = torch.Generator().manual_seed(self.seed + 2)
        aside = F.normalize(torch.randn(surface.points.shape[1], 3, generator=rng), dim=1).to(surface.points)
        points = surface.points + self.reach(pivot) * aside
        return _Places(points, surface.scene, pivot.value(points))

    def _space(self, pivot: RadianceField) -> "_Places":
        """Points in the whole box."""
        rng = torch.Generator().manual_seed(self.seed + 1)
        places = (2 * torch.rand(self.points, 3, generator=rng) - 1).to(pivot.planes) * pivot.half_side
        points = places.repeat(len(pivot), 1, 1)
        scene = torch.arange(len(pivot), device=points.device).repeat_interleave(self.points)
        return _Places(points, scene, pivot.value(points))

    def reach(self, field: RadianceField) -> float:
        """How far neighbors on the surface are apart, object units."""
        return 1.5 * 2 * field.half_side / (field.planes.shape[-1] - 1)


@dataclass(frozen=True)
class _Places:
    """Points and the signed distances that the pivot has there.

    Args:
        scene: of each point, all in a row.
    """

    points: Float[Tensor, "B N 3"]
    scene: Int[Tensor, "P"]
    value: Float[Tensor, "B N"]

    def moved(self, opened: OpenField) -> Float[Tensor, "B N"]:
        """By how much distances of other scenes differ."""
        return opened.value(self.points.flatten(0, 1), self.scene).view_as(self.value) - self.value


@dataclass(frozen=True)
class _Surface:
    """Points on the pivot's surface.

    Args:
        directions: in which they are looked at.
        scene: of each point, all in a row.
        value: signed distances of the pivot.
        color: that they should have.
        hidden: how much that is asked for: 0 where the photograph shows them.
    """

    points: Float[Tensor, "B N 3"]
    directions: Float[Tensor, "B N 3"]
    scene: Int[Tensor, "P"]
    value: Float[Tensor, "B N"]
    color: Float[Tensor, "B N 3"]
    hidden: Float[Tensor, "B N"]


def _color(field: RadianceField, attributes: Float[Tensor, "P A"], surface: _Surface) -> Float[Tensor, "P 3"]:
    """Colors of attributes at points of the surface."""
    if field.view_head is not None:
        directions = surface.directions.flatten(0, 1)
        attributes = field.view_head(field.view_head.embed(directions), attributes)
    if field.palette is None:
        return wide_sigmoid(attributes)
    shares = attributes.softmax(dim=-1).view(len(field), -1, attributes.shape[-1])
    return (shares @ field.palette).flatten(0, 1)


class GeneratorTuning(PivotalTuning):
    """Pivotal tuning as it was published: what is bent is the generator, a copy of its weights for every photograph.

    The objective is the same. It takes more time and memory, and images are not drawn side by side.

    Args:
        rate: of the weights at first.
        settings: of `PivotalTuning`.
    """

    name = "pivotal_generator"

    def __init__(self, *, rate: float = 0.002, **settings: Any) -> None:
        super().__init__(rate=rate, **settings)

    def change(self, prior: FieldPrior, guess: Guess, found: RadianceField) -> Change:
        synthesis = prior.generator.synthesis
        return GeneratorChange(found, synthesis, guess.latent[:, : synthesis.num_styles].detach())
