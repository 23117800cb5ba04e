"""What is known of made-up objects beyond their photographs: the shape, and how it looks from elsewhere.

    root/ground_truth/<file stem of the photograph>.npz

`invkit.data.synthetic.write_birds` writes such files for held-out birds and says what is in them.
"""

from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.geometry.camera import Camera
from invkit.runtime.arrays import read_npz
from invkit.types import Views


@runtime_checkable
class Truth(Protocol):
    """True objects, by the names of the images that show them.

    closed: whether the surfaces are closed, so that they have an inside.
    has_views: whether there are further views.
    """

    closed: ClassVar[bool]
    has_views: ClassVar[bool]

    def __contains__(self, name: str) -> bool: ...

    def views(self, name: str) -> Views: ...

    def parts(self, name: str) -> list[tuple[Float[Tensor, "_ 3"], Int[Tensor, "_ 3"]]]: ...


class GroundTruth:
    """The ground truth beside a data set, by the names of its images.

    Args:
        root: of the data set.

    Raises:
        FileNotFoundError: the data set has none.
    """

    closed: ClassVar[bool] = True
    has_views: ClassVar[bool] = True

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root) / "ground_truth"
        if not self.folder.is_dir():
            raise FileNotFoundError(f"the data set has no ground truth: there is no folder {self.folder}")

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def views(self, name: str) -> Views:
        """Further views of the object with their true cameras, which look at it in its own frame; K of them.

        The colors are the object's alone, so that they can be put on any background.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is damaged.
        """
        stored = self._read(name, ("novel_rgb", "novel_mask", "novel_cameras"))
        rgb = torch.from_numpy(stored["novel_rgb"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        mask = torch.from_numpy(stored["novel_mask"])[:, None].float() / 255
        # The files have the object on white; what white has added at the outline is taken out again.
        rgb = ((rgb - 1 + mask) / mask.clamp(min=1 / 255)).clamp(-1, 1) * (mask > 0)
        camera = Camera.from_cmr(torch.from_numpy(stored["novel_cameras"]).float())
        return Views(rgb, mask, camera, None, torch.zeros(len(mask), dtype=torch.long))

    def parts(self, name: str) -> list[tuple[Float[Tensor, "_ 3"], Int[Tensor, "_ 3"]]]:
        """The closed surfaces (vertices, faces) that make up the object, in its own frame; they may overlap.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is damaged.
        """
        stored = self._read(name, ("vertices", "faces", "part"))
        vertices, faces, part = (torch.from_numpy(stored[key]) for key in ("vertices", "faces", "part"))
        return [(vertices, faces[part == number].long()) for number in part.unique().tolist()]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.rpartition('/')[2]}.npz"

    def _read(self, name: str, entries: tuple[str, ...]) -> dict[str, np.ndarray]:
        path = self._path(name)
        if not path.is_file():
            raise FileNotFoundError(f"no ground truth {path}")
        return read_npz(path, entries, "make the data set again")
