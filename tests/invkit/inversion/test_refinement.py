"""Details beside records: made once, read with the records, refused where they belong to another search."""

from dataclasses import dataclass, replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from invkit.batch import Batch
from invkit.data.dataset import ImageSet
from invkit.geometry.camera import Camera
from invkit.inversion.records import RecordStore, Trace
from invkit.inversion.refinement import refine_all
from invkit.protocols import scene_of
from invkit.runtime import checkpoint
from invkit.types import Estimate, Guess, Rendering, Views


@dataclass(frozen=True)
class Scene(Batch):
    """A number for each image."""

    value: Float[Tensor, "B"]

    def with_details(self, details: dict[str, Tensor]) -> "Scene":
        return Scene(self.value + details["more"])


class Prior:
    latent_shape, num_classes = (1,), 0

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, 1, generator=rng)

    def decode(self, latent: Tensor, label: Tensor | None) -> Scene:
        return Scene(latent[:, 0])


def renderer(scene: Scene, camera: Camera, *, extras: frozenset[str] = frozenset()) -> Rendering:
    raise AssertionError("nothing is rendered here")


class Mean:
    """Adds how bright each photograph is."""

    name = "mean"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, prior: Prior, renderer: object, guess: Guess, views: Views) -> dict[str, Tensor]:
        assert guess.details is None
        self.batches.append(len(views))
        return {"more": views.rgb.mean(dim=(1, 2, 3))}


class Grey(ImageSet):
    """Item i is i / 8 bright."""

    names, num_classes, size, guessed_cameras = [f"photo/{i}" for i in range(5)], 0, 4, []

    def __getitem__(self, index: int) -> Views:
        rgb = torch.full((1, 3, 4, 4), index / 8)
        return Views(rgb, torch.ones(1, 1, 4, 4), camera(1), None, torch.tensor([index]))


def camera(count: int) -> Camera:
    one = torch.ones(count)
    return Camera(torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1), one, torch.zeros(count, 2), torch.zeros(count))


def searched(store: RecordStore, latents: list[float], names: list[str]) -> None:
    count = len(names)
    latent = torch.tensor(latents)[:, None]
    image = Rendering(torch.zeros(count, 3, 4, 4), torch.ones(count, 1, 4, 4))
    estimate = Estimate(latent, camera(count), Scene(latent[:, 0]), image)
    yes = torch.ones(count, dtype=torch.bool)
    trace = Trace(estimate.guess, ("loss",), torch.zeros(count, 1, 1), torch.ones(count, 1), yes, yes)
    store.write(names, list(range(count)), estimate, trace)


@pytest.fixture
def store(tmp_path) -> RecordStore:
    store = RecordStore(tmp_path / "records")
    searched(store, [0.0, 1.0, 2.0, 3.0], Grey.names[:4])
    store.write_failure(Grey.names[4], 4, "the mask is empty")
    return store


def refined(store: RecordStore, refinement: Mean) -> list[str]:
    left = store.unrefined(Grey.names)
    return list(refine_all(refinement, Prior(), renderer, Grey(), store, left, batch_size=3))


def value(store: RecordStore, name: str) -> float:
    return scene_of(Prior(), store.read(name).found).value.item()


def test_each_image_gets_its_own_details_and_the_search_can_be_read_without_them(store):
    refinement = Mean()
    assert refined(store, refinement) == Grey.names[:4]
    assert refinement.batches == [3, 1]
    assert [value(store, name) for name in Grey.names[:4]] == [0.0, 1.125, 2.25, 3.375]
    plain = RecordStore(store.dir, refined=False)
    assert [value(plain, name) for name in Grey.names[:4]] == [0.0, 1.0, 2.0, 3.0]
    assert store.names() == sorted(Grey.names)
    assert store.missing(Grey.names) == []


def test_a_second_run_refines_what_is_left(store):
    refined(store, Mean())
    (store.details / store.path(Grey.names[2]).name).unlink()
    again = Mean()
    assert refined(store, again) == [Grey.names[2]]
    assert again.batches == [1]


def test_a_record_without_details_among_others_is_told_of(store):
    refined(store, Mean())
    path = store.details / store.path(Grey.names[1]).name
    path.unlink()
    with pytest.raises(ValueError, match=r"photo=2F1\.pt is missing: photo/1 was not refined"):
        store.read(Grey.names[1])
    checkpoint.save(path, {"name": "x"})
    with pytest.raises(ValueError, match="holds no details"):
        store.read(Grey.names[1])
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="damaged"):
        store.read(Grey.names[1])
    assert store.unrefined(Grey.names) == [1]


def test_details_of_another_search_are_not_taken(store):
    refined(store, Mean())
    searched(store, [0.5], Grey.names[:1])
    with pytest.raises(ValueError, match="belongs to another search of photo/0"):
        store.read(Grey.names[0])
    assert store.unrefined(Grey.names) == [0]
    assert refined(store, Mean()) == [Grey.names[0]]
    assert value(store, Grey.names[0]) == 0.5


def test_guesses_with_details_are_joined_only_with_their_like(store):
    refined(store, Mean())
    with_them = store.read(Grey.names[0]).found
    both = Guess.cat([with_them, store.read(Grey.names[1]).found])
    assert both.details["more"].tolist() == [0.0, 0.125]
    with pytest.raises(ValueError, match=r"Guess\.details is missing in some"):
        Guess.cat([with_them, replace(with_them, details=None)])
    with pytest.raises(ValueError, match=r"Guess\.details is missing in some"):
        Guess.cat([replace(with_them, details=None), with_them])
