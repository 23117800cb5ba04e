"""How far a camera has gone from the one that was given; what a search may pay for going (in neither paper)."""

import math

from jaxtyping import Float
from torch import Tensor

from invkit.types import Estimate, Views


def camera_prior(
    estimate: Estimate, target: Views, *, degrees: float = 8.0, zoom: float = 0.1, shift: float = 0.1
) -> Float[Tensor, "B"]:
    """Half the squared distance of the camera from that of the photograph, in standard deviations of its source.

    Without it a search turns the object where a wrong shape would otherwise have to change. A guessed camera
    (`Views.guessed`) says nothing and costs nothing.

    Args:
        degrees: of rotation. The turn by an angle a counts 2 sin(a / 2), which is a for small ones.
        zoom: of the logarithm of the scale.
        shift: of the object's center, of each coordinate, NDC.
    """
    found, given = estimate.camera, target.camera
    along = (found.quat * given.quat).sum(dim=1).square() / found.quat.square().sum(dim=1)
    turn = 4 * (1 - along / given.quat.square().sum(dim=1)) / math.radians(degrees) ** 2
    grown = (found.scale / given.scale).log() / zoom
    moved = ((found.shift - given.shift) / shift).square().sum(dim=1)
    cost = (turn + grown.square() + moved) / 2
    return cost if target.guessed is None else cost * ~target.guessed
