"""Evaluation of records against overlaps, pictures and distances computed here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from invkit.data.dataset import ImageSet, subset
from invkit.data.folder import Folder
from invkit.evaluation import viewpoints
from invkit.evaluation.evaluator import contact_sheet, evaluate, measure, render, statuses
from invkit.evaluation.instruments import Instruments
from invkit.evaluation.protocol import EvaluationProtocol, truncated
from invkit.evaluation.viewpoints import NovelViews, RandomPlace, Ring, SameObject
from invkit.features.lpips import LPIPS
from invkit.inversion.inverter import Inverter, Stage
from invkit.inversion.objective import Objective, WeightedTerm
from invkit.inversion.records import RecordStore
from invkit.metrics.fid import Fid, gaussian_of
from invkit.metrics.gaussian import Gaussian
from invkit.metrics.kid import Kid, features_of
from invkit.metrics.psnr import psnr
from invkit.runtime import dist
from invkit.types import Estimate, Guess, Rendering, Views
from meshinv.init import BestOfN
from tests.invkit.toy_scene import DiscPrior, DiscRenderer, cameras, masks, photograph
from tests.invkit.toy_task import start, wait

DONE = [0, 1, 2, 4, 5]


class Discs(ImageSet):
    """Seven photographs; people have drawn larger masks for three of them, and one of these was never inverted."""

    num_classes = 0
    size = 16
    drawn = (1, 3, 4)

    def __init__(self, count: int = 7, unreadable: tuple[int, ...] = ()) -> None:
        self.names = [f"disc/{number}" for number in range(count)]
        self.unreadable = unreadable
        rng = torch.Generator().manual_seed(2)
        prior = DiscPrior()
        views = photograph(Guess(prior.sample(count, rng), cameras(count, rng), None), prior)
        moved = views.camera.shift + 0.2 * torch.randn(count, 2, generator=rng)
        self.views = replace(views, camera=replace(views.camera, shift=moved))

    def __getitem__(self, index: int) -> Views:
        if index in self.unreadable:
            raise ValueError(f"{self.names[index]} is damaged")
        return self.views[index]

    def annotated(self) -> ImageSet:
        larger = Discs(len(self))
        mask = torch.nn.functional.max_pool2d(self.views.mask, 3, stride=1, padding=1)
        larger.views = replace(self.views, mask=mask)
        return subset(larger, [index for index in self.drawn if index < len(self)])


class Colors:
    """A network whose features are means and spreads of the colors of a picture."""

    dim = 5

    def __init__(self, name: str = "colors") -> None:
        self.name, self.calls = name, 0

    def __call__(self, image: Tensor) -> Tensor:
        self.calls += 1
        pixels = image.flatten(2)
        return torch.cat([pixels.mean(dim=2), pixels[:, :2].std(dim=2)], dim=1)

    def to(self, device: torch.device) -> "Colors":
        return self


class Known:
    """Two further views of some discs, seen from true cameras."""

    closed, has_views = True, True
    known = ("disc/0", "disc/4", "disc/6")

    def __contains__(self, name: str) -> bool:
        return name in self.known

    def views(self, name: str) -> Views:
        rng = torch.Generator().manual_seed(int(name[-1]))
        guess = Guess(DiscPrior().sample(1, rng).repeat(2, 1), cameras(2, rng), None)
        return photograph(guess, DiscPrior(), size=24)


def absent() -> Colors:
    raise FileNotFoundError("weights 'inception_tv': no file of this name; get it there")


def search(folder: Path) -> tuple[RecordStore, Discs]:
    dataset = Discs()
    store = RecordStore(folder)
    goal = Objective({"mask": WeightedTerm(1.0, masks)})
    estimate, trace = Inverter(DiscPrior(), DiscRenderer(), BestOfN(2), goal, [Stage(30, 0.1, 0.02)])(
        dataset.batch(DONE)
    )
    store.write([dataset.names[index] for index in DONE], DONE, estimate, trace)
    store.write_failure(dataset.names[6], 6, "the mask is empty")
    return store, dataset


@pytest.fixture
def done(tmp_path) -> tuple[RecordStore, Discs]:
    return search(tmp_path)


def of(done: tuple[RecordStore, Discs], protocols: dict[str, EvaluationProtocol], **instruments) -> dict[str, dict]:
    store, dataset = done
    tools = Instruments(**instruments)
    return dict(measure(store, DiscPrior(), DiscRenderer(), dataset, protocols, tools, batch_size=2))


def found(done: tuple[RecordStore, Discs]) -> Guess:
    store, dataset = done
    return Guess.cat([store.read(dataset.names[index]).found for index in DONE])


def overlap(guess: Guess, mask: Tensor) -> float:
    rendered = DiscRenderer()(DiscPrior().decode(guess.latent, None), guess.camera).mask
    both = (rendered * mask).sum()
    return float(both / (rendered.sum() + mask.sum() - both))


def cut_out(image: Rendering, background: float) -> Tensor:
    """The toy renderer's pictures are over grey, which is 0."""
    return image.rgb + background * (1 - image.mask)


# ---- Overlaps --------------------------------------------------------------------------------------------------------


def test_overlaps_before_and_after_are_those_of_the_rendered_records(done):
    store, dataset = done
    result = evaluate(store, DiscPrior(), DiscRenderer(), dataset, batch_size=2)
    assert result["count"] == 5
    assert result["missing"] == ["disc/3"]
    assert result["images"]["disc/6"] == {"status": "the mask is empty"}
    for index in DONE:
        record = store.read(dataset.names[index])
        measured = result["images"][record.name]
        mask = dataset[index].mask
        assert measured["iou_before"] == pytest.approx(overlap(record.trace.start, mask), abs=1e-6)
        assert measured["iou_after"] == pytest.approx(overlap(record.found, mask), abs=1e-6)
        assert measured["iou_after"] == pytest.approx(float(record.trace.iou[0, -1]), abs=1e-5)
        assert measured["iou_of_search"] == float(record.trace.iou[0, -1])
    mean = sum(result["images"][f"disc/{index}"]["iou_after"] for index in DONE) / 5
    assert result["iou_after"] == pytest.approx(mean)
    assert result["iou_after"] > result["iou_before"]


def test_annotated_and_given_masks_are_told_apart(done):
    store, dataset = done
    protocols = {
        "iou_gt": EvaluationProtocol({"iou": {}}, annotated=True),
        "iou_input": EvaluationProtocol({"iou": {}}),
        "iou_gt_first_guess": EvaluationProtocol({"iou": {}}, annotated=True, first_guess=True),
    }
    results = of(done, protocols)
    drawn = dataset.annotated()
    assert results["iou_input"]["metrics"]["iou"]["per_image"].keys() == {f"disc/{index}" for index in DONE}
    assert (results["iou_gt"]["images"], results["iou_input"]["images"]) == (2, 5)
    for name, before in (("iou_gt", False), ("iou_gt_first_guess", True)):
        values = results[name]["metrics"]["iou"]
        assert values["per_image"].keys() == {"disc/1", "disc/4"}
        for number in (1, 4):
            record = store.read(f"disc/{number}")
            mask = drawn[dataset.drawn.index(number)].mask
            guess = record.trace.start if before else record.found
            assert values["per_image"][record.name] == pytest.approx(overlap(guess, mask), abs=1e-6)
        assert values["value"] == pytest.approx(sum(values["per_image"].values()) / 2)
    assert results["iou_gt"]["metrics"]["iou"]["per_image"]["disc/1"] != pytest.approx(
        results["iou_input"]["metrics"]["iou"]["per_image"]["disc/1"], abs=1e-3
    )


def test_a_guessed_camera_is_no_annotation(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGBA", (20, 20), (10, 20, 30, 255)).save(tmp_path / name)
    rows = [{"image": "a.png"}, {"image": "b.png", "camera": [10, 10, 10, 1, 0, 0, 0]}]
    (tmp_path / "manifest.json").write_text(json.dumps({"images": rows}))
    assert Folder(tmp_path).annotated().names == ["b"]


def test_how_the_searches_ended(done):
    ended = statuses(*done)
    assert ended["statuses"] == {"ok": 5, "failed": 1}
    assert ended["failed"] == {"disc/6": "the mask is empty"}
    assert ended["missing"] == ["disc/3"]
    assert ended["iou_of_search"].keys() == {f"disc/{index}" for index in DONE}


def test_nothing_to_measure(tmp_path):
    dataset = Discs(2)
    store = RecordStore(tmp_path)
    result = evaluate(store, DiscPrior(), DiscRenderer(), dataset)
    assert (result["count"], result["iou_after"]) == (0, None)
    assert result["missing"] == dataset.names
    measured = of((store, dataset), {"view": EvaluationProtocol({"psnr": {}})})["view"]
    assert (measured["images"], measured["metrics"]) == (0, {})
    assert measured["not_measured"] == {"psnr": "no image was reconstructed"}


# ---- Distances between sets ------------------------------------------------------------------------------------------


def test_distances_at_the_input_view_are_those_of_the_metrics_on_pictures_made_here(done):
    _, dataset = done
    protocol = EvaluationProtocol({"fid": {}, "kid": {"subsets": None}}, background=-1.0)
    network = Colors()
    result = of(done, {"fid1": protocol}, networks={"colors": lambda: network})["fid1"]
    estimate = render(found(done), DiscPrior(), DiscRenderer())
    fid, kid = Fid(Colors(), background=-1.0), Kid(Colors(), background=-1.0, subsets=None)
    for metric in (fid, kid):
        metric.update(estimate, estimate.image, dataset.batch(DONE))
    with pytest.warns(UserWarning, match="5 and 5 images"):
        assert result["metrics"]["fid@colors"]["value"] == pytest.approx(fid.compute(), rel=1e-6)
    assert "5 and 5 images" in result["metrics"]["fid@colors"]["note"]
    assert result["metrics"]["kid@colors"]["value"] == pytest.approx(kid.compute(), rel=1e-6)
    assert (result["images"], result["pictures"], result["reals"]) == (5, 5, None)
    assert network.calls == 2 * 3  # real and rendered pictures of three batches; FID and KID look at the same


RING = Ring(scale=0.6)
RINGS = {
    "fid12_white": EvaluationProtocol({"fid": {}, "kid": {}}, viewpoints=RING, unpaired=True),
    "fid10_true": EvaluationProtocol({"fid": {}, "kid": {}}, viewpoints=RING, without=[90, 270], unpaired=True),
    "fid10_official": EvaluationProtocol(
        {"fid": {}, "kid": {}}, viewpoints=RING, without=[270], unpaired=True, eight_bit=True, real_background=0.0
    ),
}


@pytest.mark.filterwarnings("ignore:fid@")
@pytest.mark.parametrize("name, views", [("fid12_white", 12), ("fid10_true", 10), ("fid10_official", 11)])
def test_distances_on_a_ring_are_those_of_the_metrics_on_pictures_made_here(name, views, done):
    reals = Discs(6)
    result = of(done, RINGS, networks={"colors": Colors}, reals=lambda: reals)[name]
    latent = found(done).latent
    scene = DiscPrior().decode(latent, None)
    ring = viewpoints.azimuth_ring(12, scale=0.6)
    dropped = {"fid12_white": [], "fid10_true": [3, 9], "fid10_official": [9]}[name]
    real_background = RINGS[name].real_background
    fid = Fid(Colors(), reference=gaussian_of(Colors(), [reals.batch(range(6))], background=real_background))
    kid = Kid(Colors(), reference=features_of(Colors(), [reals.batch(range(6))], background=real_background))
    for row, index in enumerate(DONE):
        for view in sorted(set(range(12)) - set(dropped)):
            image = DiscRenderer()(scene[row], ring[view])
            picture = cut_out(image, 1.0)
            if name == "fid10_official":
                picture = ((picture / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).float() / 127.5 - 1
            shown = Rendering(picture, image.mask)
            for metric in (fid, kid):
                metric.update(Estimate(latent[row : row + 1], ring[view], None, shown), shown, reals[index])
    assert result["pictures"] == 5 * views
    assert (result["images"], result["reals"]) == (5, 6)
    assert result["metrics"]["fid@colors"]["value"] == pytest.approx(fid.compute(), rel=1e-5)
    assert result["metrics"]["kid@colors"]["value"] == pytest.approx(kid.compute(), rel=1e-5, abs=1e-9)


def test_protocols_on_the_same_background_look_once(done):
    network = Colors()
    of(
        done,
        {name: RINGS[name] for name in ("fid12_white", "fid10_true")},
        networks={"c": lambda: network},
        reals=Discs,
    )
    assert network.calls == 3 * 12 + 4  # three batches of records, four of real photographs


def test_colors_are_cut_off_and_not_rounded():
    values = torch.tensor([-1.2, -1.0, -0.999, 0.0, 0.4, 0.999, 1.0, 1.7])
    expected = [0, 0, 0, 127, 178, 254, 255, 255]
    assert ((truncated(values.expand(1, 3, 2, 8)) / 2 + 0.5) * 255).round()[0, 0, 0].tolist() == expected


def test_the_released_filter_of_names_keeps_eleven_views():
    names = [f"7_{degrees:03d}.png" for degrees in range(0, 360, 30)]
    kept = [int(name[2:5]) for name in names if "_90" not in name and "_270" not in name]
    assert len(kept) == 11
    for name, count in (("fid12_white", 12), ("fid10_true", 10), ("fid10_official", 11)):
        taken = [degrees for view, degrees in enumerate(RING.degrees) if RINGS[name].takes(view)]
        assert len(taken) == count
        if name == "fid10_official":
            assert taken == kept


@pytest.mark.filterwarnings("ignore:fid@")
def test_a_file_of_statistics_stands_for_the_real_photographs(done, tmp_path):
    reference = gaussian_of(Colors(), [Discs(7).batch(range(7))], background=0.0)
    replace(reference, features=None).write(tmp_path / "reals.npz")
    settings = {"viewpoints": RING, "unpaired": True, "eight_bit": True, "statistics_network": "colors"}
    protocols = {
        "file": EvaluationProtocol({"fid": {}}, statistics=str(tmp_path / "reals.npz"), **settings),
        "set": EvaluationProtocol({"fid": {}}, real_background=0.0, **settings),
        "no_file": EvaluationProtocol({"fid": {}}, statistics=str(tmp_path / "nothing.npz"), **settings),
    }
    results = of(done, protocols, networks={"colors": Colors, "other": Colors}, reals=lambda: Discs(7))
    assert list(results["file"]["metrics"]) == ["fid@colors"]
    value = results["file"]["metrics"]["fid@colors"]["value"]
    assert value == pytest.approx(results["set"]["metrics"]["fid@colors"]["value"], rel=1e-4)
    assert results["file"]["reals"] == Gaussian.read(tmp_path / "reals.npz").count == 7
    assert "nothing.npz" in results["no_file"]["not_measured"]["fid@colors"]


# ---- What is missing -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:fid@")
def test_missing_weights_and_ground_truth_lose_no_other_number(done):
    protocols = {
        "view": EvaluationProtocol({"psnr": {}, "lpips": {}, "ssim": {}}),
        "fid1": EvaluationProtocol({"fid": {}, "kid": {}}, background=-1.0),
        "novel": EvaluationProtocol({"psnr": {}}, viewpoints=NovelViews()),
        "solid": EvaluationProtocol({"iou3d": {}}, annotated=True),
        "ring": EvaluationProtocol({"kid": {}}, viewpoints=RING, unpaired=True),
        "iou": EvaluationProtocol({"iou": {}}),
    }
    networks = {"inception_tv": absent, "colors": Colors}

    def perceptual() -> LPIPS:
        return LPIPS("vgg", weights="random")

    results = of(done, protocols, networks=networks, perceptual={"squeeze": absent, "vgg": perceptual}, truth=absent)
    assert results.keys() == protocols.keys()
    assert results["view"]["metrics"].keys() == {"psnr", "ssim", "lpips-vgg-0.1-random"}
    assert "get it there" in results["view"]["not_measured"]["lpips-squeeze"]
    assert results["fid1"]["metrics"].keys() == {"fid@colors", "kid@colors"}
    assert results["fid1"]["not_measured"].keys() == {"fid@inception_tv", "kid@inception_tv"}
    assert "get it there" in results["fid1"]["not_measured"]["kid@inception_tv"]
    for name, metric in (("novel", "psnr"), ("solid", "iou3d")):
        assert results[name]["metrics"] == {}
        assert "get it there" in results[name]["not_measured"][metric]
    assert results["ring"]["not_measured"]["kid@colors"] == "no reals to measure with"
    assert results["iou"]["metrics"]["iou"]["value"] > 0


def test_a_photograph_that_cannot_be_read_is_named_and_left_out(done):
    store, _ = done
    protocols = {
        "iou": EvaluationProtocol({"iou": {}}),
        "kid": EvaluationProtocol({"kid": {"subsets": None}}, viewpoints=RING, unpaired=True),
    }
    damaged = (store, Discs(unreadable=(2,)))
    results = of(damaged, protocols, networks={"colors": Colors}, reals=lambda: damaged[1])
    assert results["iou"]["unreadable"] == {"disc/2": "disc/2 is damaged"}
    assert "disc/2" not in results["iou"]["metrics"]["iou"]["per_image"]
    assert results["iou"]["images"] == 4
    assert (results["kid"]["images"], results["kid"]["reals"]) == (5, 6)
    assert results["kid"]["unreadable"] == {"disc/2 (real side)": "disc/2 is damaged"}


def test_finished_protocols_come_before_a_crash(done):
    class Breaking(DiscRenderer):
        def __call__(self, scene, camera, **more):
            if (camera.scale == 0.6).all():
                raise RuntimeError("out of memory")
            return super().__call__(scene, camera, **more)

    store, dataset = done
    protocols = {"iou": EvaluationProtocol({"iou": {}}), "ring": RINGS["fid12_white"]}
    tools = Instruments(networks={"colors": Colors}, reals=Discs)
    results = measure(store, DiscPrior(), Breaking(), dataset, protocols, tools)
    assert next(results)[0] == "iou"
    with pytest.raises(RuntimeError, match="memory"):
        next(results)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"metrics": {"beauty": {}}}, "beauty"),
        ({"metrics": {"psnr": {}}, "unpaired": True}, "psnr"),
        ({"metrics": {"fid": {}}, "viewpoints": Ring()}, "unpaired"),
        ({"metrics": {"kid": {}}, "unpaired": True, "statistics": "x.npz"}, "statistics"),
        ({"metrics": {"fid": {}}, "unpaired": True, "without": [90]}, "azimuths"),
        ({"metrics": {"fid": {}}, "viewpoints": Ring(4), "unpaired": True, "without": [30]}, "azimuths"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        EvaluationProtocol(**settings)


# ---- Other photographs -----------------------------------------------------------------------------------------------


def partners_of(looking, monkeypatch, discs: dict[int, int]) -> None:
    monkeypatch.setattr(type(looking), "partners", lambda self, dataset, train: discs)


def test_a_view_of_the_same_object_is_compared_with_its_photograph(done, monkeypatch):
    store, dataset = done
    looking = SameObject()
    chosen = {0: 3, 2: 6, 3: 0, 5: 5}  # 3 was not searched; 1 and 4 are not among those that are evaluated
    partners_of(looking, monkeypatch, chosen)
    result = of(done, {"novel": EvaluationProtocol({"psnr": {}}, viewpoints=looking, background=None)})["novel"]
    values = result["metrics"]["psnr"]["per_image"]
    assert values.keys() == {"disc/0", "disc/2", "disc/5"}
    for name, value in values.items():
        other = dataset[chosen[int(name[-1])]]
        image = DiscRenderer()(DiscPrior().decode(store.read(name).found.latent, None), other.camera)
        assert value == pytest.approx(float(psnr(image.rgb, other.rgb)), abs=1e-4)


@pytest.mark.filterwarnings("ignore:fid@")
@pytest.mark.parametrize("of_training", [False, True])
def test_pictures_from_random_places_are_compared_with_the_set(of_training, done, monkeypatch):
    store, dataset = done
    train = Discs(9)
    looking = RandomPlace(of_training=of_training)
    chosen = {0: 3, 1: 2, 2: 6, 4: 0, 5: 1}
    partners_of(looking, monkeypatch, chosen)
    protocol = EvaluationProtocol({"fid": {}}, viewpoints=looking, unpaired=True)
    result = of(done, {"r": protocol}, networks={"c": Colors}, reals=lambda: dataset, train=lambda: train)["r"]
    fid = Fid(Colors(), reference=gaussian_of(Colors(), [dataset.batch(range(7))], background=1.0))
    source = train if of_training else dataset
    for index, other in chosen.items():
        latent = store.read(dataset.names[index]).found.latent
        image = DiscRenderer()(DiscPrior().decode(latent, None), source[other].camera)
        shown = Rendering(cut_out(image, 1.0), image.mask)
        fid.update(Estimate(latent, source[other].camera, None, shown), shown, dataset[index])
    assert (result["images"], result["reals"]) == (5, 7)
    assert result["metrics"]["fid@colors"]["value"] == pytest.approx(fid.compute(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:fid@")
def test_what_other_photographs_lack_is_said(done):
    settings = {"metrics": {"kid": {"subsets": None}}, "unpaired": True}
    protocols = {
        "same": EvaluationProtocol({"psnr": {}}, viewpoints=SameObject()),
        "released": EvaluationProtocol(viewpoints=RandomPlace(released=True), **settings),
        "few": EvaluationProtocol(viewpoints=RandomPlace(of_training=True), **settings),
        "random": EvaluationProtocol(viewpoints=RandomPlace(), **settings),
    }
    of_set = {"networks": {"c": Colors}, "reals": lambda: done[1]}
    results = of(done, protocols, **of_set, train=lambda: Discs(6))
    assert "single photograph" in results["same"]["not_measured"]["psnr"]
    assert "too few" in results["few"]["not_measured"]["kid@c"]
    assert results["released"]["images"] == results["random"]["images"] == 5
    assert results["random"]["metrics"] != results["released"]["metrics"]
    assert "no train" in of(done, protocols, **of_set)["released"]["not_measured"]["kid@c"]


def test_what_was_not_kept_is_not_measured(done):
    protocols = {
        "n30": EvaluationProtocol({"iou": {}}),
        "n7": EvaluationProtocol({"iou": {}}, steps=7),
        "end": EvaluationProtocol({"iou": {}}, steps=30),
    }
    results = of(done, protocols)
    assert "nothing was kept after 7 steps" in results["n7"]["not_measured"]["iou"]
    assert results["n7"]["metrics"] == {}
    assert results["end"]["metrics"] == results["n30"]["metrics"]


# ---- Ground truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aligned", [False, True])
def test_novel_views_are_compared_with_ground_truth_at_its_size(aligned, done):
    store, dataset = done
    dataset.annotated = lambda: dataset
    protocol = EvaluationProtocol({"psnr": {}, "iou": {}}, viewpoints=NovelViews(aligned), background=None)
    result = of((store, dataset), {"novel": protocol}, truth=Known)["novel"]
    assert result["metrics"]["psnr"]["per_image"].keys() == {"disc/0", "disc/4"}
    assert (result["images"], result["pictures"]) == (2, 4)
    for number in (0, 4):
        guess, truth = store.read(f"disc/{number}").found, Known().views(f"disc/{number}")
        scene, values = DiscPrior().decode(guess.latent, None), []
        for k in range(2):
            camera = truth.camera[k]
            if aligned:
                camera = viewpoints.through(camera, viewpoints.seen_alike(guess.camera, dataset[number].camera))
            image = DiscRenderer(16)(scene, camera)
            larger = torch.nn.functional.interpolate(image.rgb, 24, mode="bilinear", antialias=True)
            values.append(float(psnr(larger, truth.rgb[k : k + 1])))
        assert result["metrics"]["psnr"]["per_image"][f"disc/{number}"] == pytest.approx(sum(values) / 2, abs=1e-4)


def test_the_angle_to_the_annotated_camera(done):
    store, dataset = done
    result = of(done, {"angle": EvaluationProtocol({"rotation_deg": {}}, annotated=True)})["angle"]
    for name, degrees in result["metrics"]["rotation_deg"]["per_image"].items():
        a, b = store.read(name).found.camera.quat[0], dataset[int(name[-1])].camera.quat[0]
        cosine = float((a * b).sum().abs() / (a.norm() * b.norm()))
        assert degrees == pytest.approx(2 * torch.tensor(cosine).clamp(max=1).acos().rad2deg().item(), abs=0.1)
    assert result["images"] == 2


# ---- Several processes -----------------------------------------------------------------------------------------------

SHARED = {
    "iou": EvaluationProtocol({"iou": {}, "psnr": {}}),
    "fid1": EvaluationProtocol({"fid": {}, "kid": {"subsets": 3, "subset_size": 3}}, background=-1.0),
    **RINGS,
}


def measured(folder: Path) -> dict[str, dict]:
    tools = Instruments(networks={"colors": Colors, "inception_tv": absent}, reals=lambda: Discs(6))
    results = measure(RecordStore(folder), DiscPrior(), DiscRenderer(), Discs(), SHARED, tools, batch_size=2)
    return json.loads(json.dumps(dict(results)))


def of_a_rank(folder: Path, target: Path) -> None:
    ranks = dist.init()
    result = measured(folder)
    target.with_suffix(f".{ranks.rank}").write_text(json.dumps(result))
    dist.finish()


@pytest.mark.filterwarnings("ignore:fid@")
def test_two_processes_measure_what_one_does(tmp_path):
    search(tmp_path / "records")
    alone = measured(tmp_path / "records")
    assert wait(start(2, of_a_rank, tmp_path / "records", tmp_path / "of")) == [0, 0]
    for rank in (0, 1):
        together = json.loads((tmp_path / f"of.{rank}").read_text())
        assert together.keys() == alone.keys()
        for name in alone:
            for key in ("images", "pictures", "reals", "not_measured", "unreadable"):
                assert together[name][key] == alone[name][key]
            for metric, values in alone[name]["metrics"].items():
                assert together[name]["metrics"][metric]["value"] == pytest.approx(values["value"], rel=1e-6, abs=1e-9)
                assert together[name]["metrics"][metric].get("per_image") == values.get("per_image")


# ---- Pictures --------------------------------------------------------------------------------------------------------


def test_a_contact_sheet_shows_photograph_reconstruction_and_turns(done):
    store, dataset = done
    views = dataset.batch([0, 5])
    both = Guess.cat([store.read(dataset.names[index]).found for index in (0, 5)])
    estimate = render(both, DiscPrior(), DiscRenderer())
    sheet = contact_sheet(views, estimate, DiscRenderer(), turns=(90.0, 180.0))
    assert sheet.shape == (3, 2 * 16, 5 * 16)
    cells = sheet.view(3, 2, 16, 5, 16).permute(1, 3, 0, 2, 4)
    assert torch.equal(cells[:, 0], views.rgb)
    for row in (0, 1):
        image = estimate.image[row]
        torch.testing.assert_close(cells[row, 2], cut_out(image, 1.0)[0])
        # A turned disc is in the middle of its picture.
        ink = (1 - cells[row, 4]).abs().sum(0)
        torch.testing.assert_close(ink, ink.flip(0, 1), rtol=0, atol=1e-4)
