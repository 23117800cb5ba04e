"""What the inversion of photographs spends its time on, each part against its naive form.

Losses are compared with tables of all pairs in float64; what the search does for many guesses or images at once, with
the same done for one after another. Pictures are renderings of the prior's own birds, or discs of random colors.
"""

import importlib
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks import against_naive
from benchmarks.against_naive import Part, Result, Work
from invkit.evaluation import viewpoints
from invkit.export import write_glb
from invkit.features.vgg import VGG19
from invkit.geometry.camera import Camera
from invkit.inversion.inverter import Inverter, Stage
from invkit.inversion.objective import total
from invkit.inversion.schedule import MESHINVERSION_STAGES
from invkit.runtime.run import instantiate_trusted
from invkit.types import Estimate, Guess, Rendering, Views
from meshinv.export import models
from meshinv.init import BestOfN
from meshinv.losses.appearance import Features
from meshinv.losses.chamfer_mask import ChamferMask
from meshinv.losses.chamfer_texture import ChamferTexture
from meshinv.template import Template

ROOT = Path(__file__).resolve().parents[2]


def rows(settings: dict) -> Iterator[dict]:
    """The cases of the suite; see `against_naive.rows`."""
    return against_naive.rows(settings, "mesh_inversion", PARTS)


# ---- Losses ----------------------------------------------------------------------------------------------------------


def with_gradient(loss: Callable[[], Tensor], leaf: Tensor) -> Work:
    def work() -> Result:
        values = loss()
        return Result(values, torch.autograd.grad(values.sum(), leaf)[0])

    return work


def mask_loss(case: dict) -> tuple[Work, Work]:
    """The template's vertices, bumpy, against a disc of `size` pixels."""
    vertices = Template().vertices[None]
    vertices = (0.5 * vertices + 0.03 * torch.randn(vertices.shape)).to(case["device"]).requires_grad_()
    views = disc_view(case["size"], 0.5).to(case["device"])
    blank = Rendering(torch.zeros_like(views.rgb), torch.zeros_like(views.mask))

    def form(term: ChamferMask) -> Work:
        target = term.target(views)
        estimate = Estimate(torch.zeros(1, 1), views.camera, SimpleNamespace(vertices=vertices), blank)
        return with_gradient(lambda: term(estimate, target), vertices)

    return form(slow_losses().DenseChamferMask()), form(ChamferMask())


def texture_loss(case: dict) -> tuple[Work, Work]:
    """Two discs of `size` pixels, from the rendered to the photographed one."""
    photo, drawn = (disc_view(case["size"], column).to(case["device"]) for column in (0.55, 0.5))
    rgb = (drawn.rgb * drawn.mask).requires_grad_()

    def form(term: ChamferTexture) -> Work:
        target = term.target(photo)
        estimate = Estimate(torch.zeros(1, 1), drawn.camera, None, Rendering(rgb, drawn.mask))
        return with_gradient(lambda: term(estimate, target), rgb)

    return form(slow_losses().DenseChamferTexture(max_points=None)), form(ChamferTexture(max_points=None))


def slow_losses() -> ModuleType:
    sys.path.insert(0, str(ROOT))  # these are the tests'
    return importlib.import_module("tests.meshinv.slow_losses")


def disc_view(count: int, column: float) -> Views:
    """The `count` pixels nearest to a point of a picture that they cover a quarter of.

    Args:
        column: of the point; 0 and 1 are the borders.
    """
    side = math.ceil(2 * count**0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    nearest = ((x - column * side) ** 2 + (y - side / 2) ** 2).flatten().argsort(stable=True)[:count]
    mask = torch.zeros(side**2).index_fill_(0, nearest, 1).view(1, 1, side, side)
    patches = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, size=(side, side), mode="bilinear")
    rgb = (patches + 0.05 * torch.randn(1, 3, side, side)).clamp(-1, 1)
    facing = Camera(torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1), torch.zeros(1, 2), torch.zeros(1))
    return Views(rgb, mask, facing, None, torch.zeros(1, dtype=torch.long))


def feature_loss(case: dict) -> tuple[Work, Work]:
    """`size` pictures; the features of the photographs are computed once, or at every step."""
    search = Search(case)
    term = ChamferTexture(Features(VGG19(weights=case["features"])), forth=0.5, back=0.5)
    drawn = search.inverter.estimate(search.start).detach()
    rgb = drawn.image.rgb.requires_grad_()
    estimate = Estimate(drawn.latent, drawn.camera, drawn.scene, Rendering(rgb, drawn.image.mask))
    target = term.target(search.views)

    def at_every_step() -> Tensor:
        with torch.no_grad():
            again = term.target(search.views)
        return term(estimate, again)

    return with_gradient(at_every_step, rgb), with_gradient(lambda: term(estimate, target), rgb)


# ---- Search ----------------------------------------------------------------------------------------------------------


class Search:
    """Renderings of birds of the prior, and where the search for them begins.

    Args:
        images: how many birds; None takes the case's size.
    """

    def __init__(self, case: dict, images: int | None = None) -> None:
        overrides = [f"experiment={case['experiment']}", f"prior.generator.path={ROOT / case['prior']}"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = OmegaConf.to_container(compose("invert", overrides), resolve=True, throw_on_missing=False)
        device, images = case["device"], case["size"] if images is None else images
        self.prior = instantiate_trusted(config["prior"]).to(device)
        self.inverter: Inverter = instantiate_trusted(config["inverter"], prior=self.prior)
        self.inverter.init = BestOfN(case["latents"])
        self.inverter.stages = (Stage(case["steps"], 0.05, 0.005),)
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # what torch loads for its first one counts for no form
        rng = torch.Generator().manual_seed(0)
        wanted, guessed = (self.prior.sample(images, rng) for _ in range(2))
        camera = viewpoints.random(images, rng).to(device)
        label = torch.zeros(images, dtype=torch.long, device=device) if self.prior.num_classes else None
        self.start = Guess(guessed, camera, label)
        birds = Guess(wanted, camera, label)
        with torch.no_grad():  # one after another, so that the peak is not reached before the work begins
            image = Rendering.cat([self.inverter.estimate(birds[i]).image for i in range(images)])
        self.views = Views(image.rgb, image.mask, camera, label, torch.arange(images, device=device))

    def one_by_one(self, together: Callable[[slice], Result]) -> Work:
        """The same image by image."""

        def work() -> Result:
            parts = [together(slice(i, i + 1)) for i in range(len(self.views))]
            gradients = [part.gradients for part in parts if part.gradients is not None]
            return Result(torch.cat([part.values for part in parts]), torch.cat(gradients) if gradients else None)

        return work


def first_guess(case: dict) -> tuple[Work, Work]:
    """The best of `size` latents for one image."""
    search = Search(case, images=1)
    inverter = search.inverter
    targets = inverter.objective.targets(search.views)

    def form(batch_size: int) -> Work:
        init = BestOfN(case["size"], batch_size=batch_size)
        return lambda: Result(init(search.prior, search.views, inverter.score(targets)).latent)

    return form(1), form(BestOfN().batch_size)


def step(case: dict) -> tuple[Work, Work]:
    """One step of `size` images."""
    search = Search(case)
    inverter = search.inverter
    targets = inverter.objective.targets(search.views)

    def together(images: slice) -> Result:
        state = inverter._state(search.start[images])
        value = total(inverter.objective(inverter.estimate(state.guess()), targets[images]))
        state.step(value, MESHINVERSION_STAGES[1])
        return Result(value, state.variables[0].grad)

    return search.one_by_one(together), lambda: together(slice(None))


def inversion(case: dict) -> tuple[Work, Work]:
    """First guesses and a search of few steps for `size` images; values are the objective's at the end."""
    search = Search(case)

    def together(images: slice) -> Result:
        _, trace = search.inverter(search.views[images])
        return Result(trace.values[:, -1].sum(dim=1))

    return search.one_by_one(together), lambda: together(slice(None))


def export(case: dict) -> tuple[Work, Work]:
    """GLB files of `size` guesses; values are the vertices."""
    search = Search(case)
    folder = tempfile.TemporaryDirectory()

    def together(images: slice) -> Result:
        guess = search.start[images]
        with torch.no_grad():
            meshes = models(search.prior.decode(guess.latent, guess.label))
        for number, mesh in enumerate(meshes):
            write_glb(Path(folder.name) / f"{number}.glb", mesh)
        return Result(torch.stack([torch.from_numpy(mesh.vertices.copy()) for mesh in meshes]))

    return search.one_by_one(together), lambda: together(slice(None))


PARTS = {
    "mask": Part("dense float64", mask_loss, sized_in_images=False),
    "texture": Part("dense float64", texture_loss, sized_in_images=False),
    "feature": Part("target each time", feature_loss),
    "init": Part("one by one", first_guess, sized_in_images=False),
    "step": Part("one by one", step),
    "inversion": Part("one by one", inversion),
    "export": Part("one by one", export),
}
