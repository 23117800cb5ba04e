"""CAD models of PASCAL3D+ as the ground truth of 3D shapes.

    root/PASCAL3D+_release1.1/CAD/<category>.mat     `<category>`: vertices, faces and named key points of every model
    root/data, root/sfm                              CMR's annotations (`invkit.data.pascal3d`)

A model is annotated for each photograph. It lies in a frame of its own; the frame that cameras look at is that of the
mean key points of CMR's structure from motion. The similarity between the key points of both leads from one to the
other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.data import pascal3d
from invkit.data.cmr import OBTAIN
from invkit.runtime import matlab
from invkit.types import Views

KEY_POINTS = {
    "car": (
        "left_back_trunk", "right_back_wheel", "right_front_light", "right_front_wheel", "right_back_trunk",
        "left_back_wheel", "left_front_light", "left_front_wheel", "upper_left_rearwindow", "upper_right_windshield",
        "upper_right_rearwindow", "upper_left_windshield",
    )
}  # fmt: skip
"""In the order of CMR's mean key points, by their names in PASCAL3D+, which calls some left that are on the right."""

LEAST, LARGEST_ERROR = 4, 0.2
"""Key points that fix a similarity, and by how much they may miss each other, relative to their spread."""


@dataclass(frozen=True)
class Cad:
    """A model in its own frame, and where its named key points are."""

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    key_points: dict[str, Float[Tensor, "3"]]


class CadTruth:
    """The models that are annotated for the photographs of a split, by the names of its images.

    Args:
        root, split, category: of PASCAL3D+, as for `Pascal3D`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, or the key points of a model do not fit those of the cameras.
    """

    closed: ClassVar[bool] = False
    has_views: ClassVar[bool] = False

    def __init__(self, root: str | Path, split: str, category: str = "car") -> None:
        if category not in KEY_POINTS:
            raise ValueError(f"category {category!r}: the order of key points is known of {', '.join(KEY_POINTS)} only")
        cads = read_cads(cad_file(root, category), category)
        mean = pascal3d.mean_shape(root)
        self._numbers = {
            record.name: record.cad_index
            for record in pascal3d.read_records(root, split, category)
            if record.cad_index is not None
        }
        if beyond := [name for name, number in self._numbers.items() if not 1 <= number <= len(cads)]:
            raise ValueError(
                f"{cad_file(root, category)} has {len(cads)} models, but {beyond[0]} shows number "
                f"{self._numbers[beyond[0]]}; {OBTAIN}"
            )
        self._placed = {
            number: (_placed(cads[number - 1], mean, KEY_POINTS[category], f"model {number}"), cads[number - 1].faces)
            for number in sorted(set(self._numbers.values()))
        }

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def parts(self, name: str) -> list[tuple[Float[Tensor, "_ 3"], Int[Tensor, "_ 3"]]]:
        """The surface (vertices, faces) of the object, in the frame that cameras look at; it need not be closed."""
        return [self._placed[self._numbers[name]]]

    def views(self, name: str) -> Views:
        """
        Raises:
            ValueError: always; the models have no pictures.
        """
        raise ValueError("CAD models are shapes alone: there are no further views")


def cad_file(root: str | Path, category: str = "car") -> Path:
    """The file of all models of a category."""
    return Path(root) / "PASCAL3D+_release1.1" / "CAD" / f"{category}.mat"


def read_cads(path: str | Path, category: str = "car") -> list[Cad]:
    """The models of a category, in their order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or lacks a field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {OBTAIN}")
    try:
        models = np.atleast_1d(matlab.read_mat(path)[category])
        return [_cad(model, KEY_POINTS[category]) for model in models]
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, OSError, NotImplementedError) as error:
        raise ValueError(f"cannot read {path} ({error!r}); {OBTAIN}") from error


def _cad(model, names: tuple[str, ...]) -> Cad:
    vertices = torch.from_numpy(np.asarray(model.vertices, dtype=np.float64).reshape(-1, 3))
    faces = torch.from_numpy(np.asarray(model.faces, dtype=np.int64).reshape(-1, 3)) - 1
    if not len(faces) or int(faces.min()) < 0 or int(faces.max()) >= len(vertices):
        raise ValueError("a face has a corner that there is not")
    found = {name: np.asarray(getattr(model, name, ()), dtype=np.float64).ravel() for name in names}
    return Cad(vertices, faces, {name: torch.from_numpy(point) for name, point in found.items() if point.size == 3})


def _placed(cad: Cad, mean: Float[Tensor, "N 3"], names: tuple[str, ...], what: str) -> Float[Tensor, "V 3"]:
    """The vertices of a model in the frame of the mean key points."""
    known = [place for place, name in enumerate(names) if name in cad.key_points]
    if len(known) < LEAST:
        raise ValueError(f"{what} has {len(known)} of the key points {', '.join(names)}; {LEAST} are needed")
    source = torch.stack([cad.key_points[names[place]] for place in known])
    scale, turn, shift, error = similarity(source, mean[known])
    if error > LARGEST_ERROR:
        raise ValueError(f"{what}: its key points miss those of the cameras' frame by {error:.0%}; {OBTAIN}")
    return scale * cad.vertices @ turn.T + shift


def similarity(
    source: Float[Tensor, "N 3"], target: Float[Tensor, "N 3"]
) -> tuple[float, Float[Tensor, "3 3"], Float[Tensor, "3"], float]:
    """scale, orthogonal matrix Q and shift for which scale Q source + shift is nearest to target; and how near.

    Structure from motion under weak perspective cannot tell a shape from its mirror image, so Q may be a reflection.

    Returns:
        The last is the root mean square distance, relative to the target's from its middle.
    """
    middle, aim = source.mean(dim=0), target.mean(dim=0)
    first, second = source - middle, target - aim
    u, values, v = torch.linalg.svd(second.T @ first)
    turn = u @ v
    scale = float(values.sum() / first.square().sum())
    shift = aim - scale * turn @ middle
    missed = (scale * source @ turn.T + shift - target).square().sum() / second.square().sum()
    return scale, turn, shift, float(missed.sqrt())
