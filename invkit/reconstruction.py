"""From photographs to models, in Python: what scripts/reconstruct.py does, for arrays and for files.

    birds = Reconstructor.load("real_birds", method="meshinv")
    (robin,) = birds([photograph], masks=[mask])
    robin.write_glb("robin.glb")

A reconstruction keeps what was found and how; models, pictures and numbers are made of it when they are asked for.
docs/python.md shows all of it.
"""

import copy
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from invkit.data.dataset import Preparation
from invkit.data.folder import camera_vector, item
from invkit.inversion import doubt
from invkit.inversion.inverter import refuse_unusable
from invkit.photographs import silhouette
from invkit.photographs.reconstruction import Reconstruction, Tools
from invkit.photographs.silhouette import Image, Photograph
from invkit.protocols import Encoding, Init
from invkit.runtime.commandline import suggestion
from invkit.runtime.run import composed, instantiate_trusted
from invkit.types import Views


class Reconstructor:
    """A prior with its search, ready for photographs.

    Args:
        size: of the crops that are searched, pixels along a side.
        around: first guesses where no camera is given; None where the inverter's own find it.
        refine_size: side of the photograph for the refinement; None: as it was searched.
        category: what is looked for where there is neither mask nor box nor transparency.
    """

    def __init__(
        self,
        tools: Tools,
        *,
        size: int,
        preparation: Preparation = Preparation(),
        around: Init | None = None,
        refine_size: int | None = None,
        category: str = "bird",
        device: torch.device | str = "cpu",
    ) -> None:
        self.tools = tools
        self.size, self.preparation, self.around, self.refine_size = size, preparation, around, refine_size
        self.category, self.device = category, device

    @classmethod
    def load(
        cls,
        name: str = "real_birds",
        *,
        method: str = "meshinv",
        device: torch.device | str = "cpu",
        overrides: Sequence[str] = (),
    ) -> "Reconstructor":
        """The prior of that name, as scripts/reconstruct.py takes it.

        Args:
            name: of a prior that ships, or of an experiment.
            method: meshinv (textured meshes) or nerfinv (radiance fields).
            overrides: of settings, as on the command line: "prior.generator.path=my.pt", "refine=null".

        Raises:
            FileNotFoundError, ValueError: there is no such method, prior or setting.
        """
        shipped = composed("reconstruct", [f"method={method}"])["ships"]
        experiment = shipped.get(name, name)
        if experiment == name and not name.startswith(f"{method}_"):
            known = ", ".join(shipped)
            raise ValueError(
                f"{name}: {method} has no prior of that name{suggestion(name, shipped)} (there are {known})"
            )
        config = composed("reconstruct", [f"method={method}", f"experiment={experiment}", *overrides])
        return cls.of(config, device)

    @classmethod
    def of(cls, config: Mapping[str, Any], device: torch.device | str = "cpu") -> "Reconstructor":
        """What configs/reconstruct.yaml describes, composed.

        Raises:
            ValueError: experiment and method do not belong together.
        """
        method, other = (config[part]["_target_"].partition(".")[0] for part in ("prior", "modeling"))
        if method != other:
            raise ValueError(f"the experiment is one of {method} and the method is {other}: give method={method}")
        prior = instantiate_trusted(config["prior"]).to(device)
        tools = Tools(
            instantiate_trusted(config["inverter"], prior=prior),
            lambda size: instantiate_trusted(config["inverter"]["renderer"], size=size),
            instantiate_trusted(config["modeling"]),
            instantiate_trusted(config["refine"]) if config.get("refine") else None,
            doubt.Thresholds(**config["doubt"]),
        )
        return cls(
            tools,
            size=config["data"]["size"],
            preparation=instantiate_trusted(config["preparation"]),
            around=instantiate_trusted(config["around"]),
            refine_size=config["refine_size"],
            category=config["category"],
            device=device,
        )

    def __call__(
        self,
        photographs: Sequence[Image | str | os.PathLike] | Image,
        *,
        masks: Sequence[Image | str | os.PathLike | None] | None = None,
        boxes: Sequence[Sequence[int | float] | None] | None = None,
        labels: Sequence[int | None] | None = None,
        cameras: Sequence[Sequence[int | float] | None] | None = None,
        improve: bool = False,
    ) -> list[Reconstruction]:
        """The reconstruction of each photograph, one after another.

        Args:
            photographs: arrays (bytes [H W 3], or [H W 4] with transparency; of torch also [C H W] in [0, 1]) or files.
            masks: [H W], as large as the photographs: bytes, booleans or numbers in [0, 1]; or files. None where
                transparency, a box or Mask R-CNN gives the silhouette.
            boxes: left, top, right, bottom in pixels around the object.
            labels: classes, of priors that have classes; None is searched.
            cameras: see `Reconstruction.camera`; None is searched.
            improve: lay the outlines of the masks where the colors change.

        Raises:
            FileNotFoundError, ValueError: one of them cannot be used; which and why.
        """
        given = {"masks": masks, "boxes": boxes, "labels": labels, "cameras": cameras}
        count = len(photographs)
        for name, values in given.items():
            if values is not None and len(values) != count:
                raise ValueError(
                    f"{name}: there are {count} photographs and {len(values)} of these; None stands for none"
                )
        columns = [[None] * count if values is None else values for values in given.values()]
        found = []
        for index, (image, mask, box, label, camera) in enumerate(zip(photographs, *columns, strict=True)):
            photograph = self.photograph(image, mask, box, improve=improve, index=index)
            found.append(self.reconstruct(photograph, label=label, camera=camera))
        return found

    def photograph(
        self,
        image: Image | str | os.PathLike,
        mask: Image | str | os.PathLike | None = None,
        box: Sequence[int | float] | None = None,
        *,
        improve: bool = False,
        index: int = 0,
    ) -> Photograph:
        """An image with its silhouette; see `__call__`.

        Raises:
            FileNotFoundError, ValueError: it cannot be used.
        """
        find = silhouette.finder(self.category)
        name, mask_name = _told(image, f"photograph {index}"), _told(mask, f"mask {index}")
        if isinstance(image, str | os.PathLike):
            rgba = silhouette.read_rgba(image, upright=True)
        else:
            rgba = silhouette.as_rgba(image, name)
        if isinstance(mask, str | os.PathLike):
            mask = silhouette.read_image(mask, upright=True)[:1]
        elif mask is not None:
            mask = silhouette.as_mask(mask, mask_name)
        return silhouette.silhouetted(rgba, mask, box, find=find, improve=improve, names=(name, mask_name or "alpha"))

    def reconstruct(
        self, photograph: Photograph, *, label: int | None = None, camera: Sequence[int | float] | None = None
    ) -> Reconstruction:
        """What is found for one photograph.

        Raises:
            ValueError: it cannot be searched, or camera or label are impossible.
        """
        began = time.monotonic()
        views = self._views(photograph, label, camera, self.size)
        refuse_unusable(views)
        inverter = copy.copy(self.tools.inverter)
        inverter.init = self._first_guesses(camera is not None)
        targets = inverter.objective.targets(views)
        first, tried = inverter.begin(targets)
        estimate, trace = inverter.refine(tried, targets)
        refined = None
        if self.tools.refinement is not None:
            guess = estimate.guess.detach()
            large = views if self.refine_size is None else self._views(photograph, label, camera, self.refine_size)
            refined = replace(guess, details=self.tools.refinement(inverter.prior, inverter.renderer, guess, large))
        seconds = time.monotonic() - began
        trace = replace(trace, start=first)
        return Reconstruction(photograph, views, (first, tried), estimate, trace, refined, camera, seconds, self.tools)

    def _first_guesses(self, camera_given: bool) -> Init:
        """Where a search begins: the inverter's own takes the camera as given, or is an encoder that finds one."""
        own = self.tools.inverter.init
        if not camera_given:
            return own if self.around is None else self.around
        return own.keeping_cameras() if isinstance(own, Encoding) else own

    def _views(
        self, photograph: Photograph, label: int | None, camera: Sequence[int | float] | None, size: int
    ) -> Views:
        vector = None if camera is None else camera_vector(camera, f"{photograph.name}: the camera")
        views = item(photograph.rgb, photograph.mask, vector, label, 0, size, self.preparation)
        return views.to(self.device)


def _told(given: Any, otherwise: str) -> str:
    """What something that was given is called in an error."""
    return str(given) if isinstance(given, str | os.PathLike) else otherwise if given is not None else ""
