"""What is found in uncut photographs is measured where the boxes are."""

import pytest
import torch
from PIL import Image

from invkit.data.dataset import subset
from invkit.data.folder import Folder
from invkit.data.imagenet import ImageNet
from invkit.evaluation.boxes import BoxedRecords
from invkit.inversion.records import RecordStore, Trace
from invkit.types import Estimate, Guess, Rendering
from tests.invkit.data import detected

CAR = {"categories": ["car"]}


def test_cameras_of_records_are_those_of_the_boxes(tmp_path):
    detected.write(tmp_path, "imagenet")
    whole, cut = (ImageNet(tmp_path, "train", 16, **CAR, whole_image=uncut) for uncut in (True, False))
    cameras = whole.cameras().to("cpu", dtype=torch.float32)
    count = len(whole)
    latent = torch.zeros(count, 4)
    guess = Guess(latent, cameras)
    trace = Trace(
        guess,
        ("mask",),
        torch.zeros(count, 3, 1),
        torch.zeros(count, 3),
        torch.ones(count, dtype=torch.bool),
        torch.ones(count, dtype=torch.bool),
        snapshots={0: guess, 2: guess},
    )
    picture = Rendering(torch.zeros(count, 3, 2, 2), torch.zeros(count, 1, 2, 2))
    store = RecordStore(tmp_path / "records")
    store.write(whole.names, list(range(count)), Estimate(latent, cameras, None, picture, None), trace)
    store.write_failure("unreadable", 9, "no image")
    for data, places in ((cut, range(count)), (subset(cut, [3, 1]), (3, 1))):
        boxed = BoxedRecords(store, data)
        for name, place in zip(data.names, places, strict=True):
            record, wanted = boxed.read(name), cut.camera(place)
            for found in (record.found, record.trace.start, record.trace.snapshots[2]):
                for part in ("quat", "scale", "shift", "inv_focal", "center"):
                    torch.testing.assert_close(
                        getattr(found.camera, part), getattr(wanted, part).float(), rtol=1e-5, atol=1e-6
                    )
    assert boxed.read("unreadable").found is None
    # Nothing is cut where the items themselves are uncut, and what the search has left stays as it is.
    assert torch.equal(BoxedRecords(store, whole).read(whole.names[0]).found.camera.scale, cameras.scale[:1])
    torch.testing.assert_close(store.read(whole.names[0]).found.camera.scale, cameras.scale[:1])


def test_data_without_boxes_are_refused(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGBA", (4, 4), (9, 9, 9, 255)).save(photos / "a.png")
    with pytest.raises(ValueError, match="Folder does not know where its items lie"):
        Folder(photos).frame(0)
