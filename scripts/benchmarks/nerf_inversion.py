"""What hybrid inversion spends its time on, each part against its plain form: images one at a time, pictures by the
plain renderer.

Photographs are renderings of a generator's own objects; without trained networks, of bumpy balls. Encoder and LPIPS
cost the same whatever their weights.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from jaxtyping import Float, Int
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks import against_naive, nerf
from benchmarks.against_naive import Part, Result, Work
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.inversion.inverter import Inverter
from invkit.inversion.objective import total
from invkit.inversion.schedule import hybrid_stages
from invkit.runtime.run import instantiate_trusted, load_module
from invkit.types import Guess, Rendering, Views
from nerfinv.encoder.encoder import Encoder
from nerfinv.encoder.segformer import SegFormer
from nerfinv.field import RadianceField
from nerfinv.pnp import PoseSolver, focal_candidates
from nerfinv.prior import FieldPrior
from nerfinv.renderers.plain import PlainRenderer

ROOT = Path(__file__).resolve().parents[2]


def rows(settings: dict) -> Iterator[dict]:
    """The cases of the suite; see `against_naive.rows`."""
    return against_naive.rows(settings, "nerf_inversion", PARTS)


class Balls:
    """A prior of bumpy balls: latents are what the planes are multiplied by, channel by channel."""

    num_classes = 0

    def __init__(self, sizes: dict) -> None:
        self.ball = nerf.bumpy_balls(1, sizes, alpha=0.02, beta=0.02)
        self.ball.decoder.requires_grad_(False), self.ball.density.requires_grad_(False)
        self.latent_shape = (1, sizes["plane_channels"])

    def sample(self, count: int, rng: torch.Generator) -> Float[Tensor, "count W S"]:
        return 1 + 0.1 * torch.randn(count, *self.latent_shape, generator=rng)

    def decode(self, latent: Float[Tensor, "B W S"], label: Int[Tensor, "B"] | None) -> RadianceField:
        planes = self.ball.planes * latent[:, 0, None, :, None, None]
        return replace(self.ball, planes=planes, palette=self.ball.palette.expand(len(latent), -1, -1))


class Search:
    """Renderings of a prior's objects, and where the search for them begins."""

    def __init__(self, case: dict) -> None:
        overrides = [f"experiment={case['experiment']}", *case["overrides"]]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = OmegaConf.to_container(compose("invert", overrides), resolve=True, throw_on_missing=False)
        images, rng = case["size"], torch.Generator().manual_seed(0)
        node = config["inverter"]
        node["init"] = None
        if case["prior"] is None:
            self.prior, side = Balls(config["model"]), 1.0
        else:
            generator = load_module(ROOT / case["prior"], "generator", state="generator_ema")
            self.prior, side = FieldPrior(generator), generator.scene_range
        stages = {**node.pop("stages"), "steps": case["steps"]}
        self.inverter: Inverter = instantiate_trusted(
            {**node, "stages": stages, "snapshots": [0]}, prior=self.prior, init=lambda *_: self.start
        )
        camera = Camera(
            rotation.random(images, rng),
            torch.full((images,), 0.7 / side),
            torch.zeros(images, 2),
            torch.full((images,), 0.35 if case["perspective"] else 0.0),
        )
        wanted, self.start = (Guess(self.prior.sample(images, rng), camera) for _ in range(2))
        with torch.no_grad():
            shown = Rendering.cat(
                [
                    self.inverter.renderer(
                        self.prior.decode(wanted.latent[i : i + 1], None), camera[i], extras=frozenset({"coords"})
                    )
                    for i in range(images)
                ]
            )
        self.shown = shown
        self.views = Views(shown.rgb, shown.mask.clamp(max=1), camera, None, torch.arange(images))

    def plain(self) -> "Search":
        """The same search by the plain renderer."""
        ours = self.inverter.renderer
        other = copy.copy(self)
        other.inverter = copy.copy(self.inverter)
        other.inverter.renderer = PlainRenderer(
            ours.size, coarse=ours.coarse, fine=ours.fine, background=ours.background, offset=ours.offset
        )
        return other


def one_by_one(count: int, together: Callable[[slice], Result]) -> Work:
    """The same image by image."""

    def work() -> Result:
        parts = [together(slice(i, i + 1)) for i in range(count)]
        gradients = [part.gradients for part in parts if part.gradients is not None]
        return Result(torch.cat([part.values for part in parts]), torch.cat(gradients) if gradients else None)

    return work


def encoder(case: dict) -> tuple[Work, Work]:
    """Canonical maps, masks and styles of `size` images; values are the styles."""
    search = Search(case)
    if case["encoder"] is None:
        network = Encoder(SegFormer(**case["backbone"]), head_width=case["head_width"], latent_dim=128)
    else:
        network = load_module(ROOT / case["encoder"], "encoder")
    network.eval()

    @torch.no_grad()
    def together(images: slice) -> Result:
        return Result(network(search.views.rgb[images]).latent)

    return one_by_one(case["size"], together), lambda: together(slice(None))


def pnp(case: dict) -> tuple[Work, Work]:
    """Poses of `size` canonical maps; values are the rotations. Ours: in worker processes, whose time only `ms` has."""
    search = Search(case)
    focals = focal_candidates(0.6 + 2.4 * torch.linspace(0, 1, 101) ** 2) if case["perspective"] else None
    alone, workers = PoseSolver(focals), PoseSolver(focals, workers=case["workers"])
    workers(search.shown.coords, search.shown.mask)  # starts the processes

    def form(solver: PoseSolver, images: slice) -> Result:
        found = solver(search.shown.coords[images], search.shown.mask[images])
        return Result(found.camera.quat)

    return one_by_one(case["size"], lambda images: form(alone, images)), lambda: form(workers, slice(None))


def step(case: dict) -> tuple[Work, Work]:
    """One step of `size` images; gradients are the styles'."""
    search = Search(case)

    def form(search: Search, images: slice) -> Result:
        inverter = search.inverter
        state = inverter._state(search.start[images])
        targets = inverter.objective.targets(search.views[images])
        value = total(inverter.objective(replace(inverter.estimate(state.guess()), steps=0), targets))
        state.step(value, *hybrid_stages(1))
        return Result(value, state.variables[0].grad)

    plain = search.plain()
    return one_by_one(case["size"], lambda images: form(plain, images)), lambda: form(search, slice(None))


def inversion(case: dict) -> tuple[Work, Work]:
    """The search from given guesses for `size` images; values are the objective's at the end."""
    search = Search(case)

    def form(search: Search, images: slice) -> Result:
        _, trace = search.inverter.refine(search.start[images], search.views[images])
        return Result(trace.values[:, -1].sum(dim=1))

    plain = search.plain()
    return one_by_one(case["size"], lambda images: form(plain, images)), lambda: form(search, slice(None))


PARTS = {
    "encoder": Part("one by one", encoder),
    "pnp": Part("one by one", pnp),
    "step": Part("plain, one by one", step),
    "inversion": Part("plain, one by one", inversion),
}
"""What is measured."""
