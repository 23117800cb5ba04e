"""Data that the scripts' tests share."""

from pathlib import Path

import pytest

from invkit.data.synthetic import write_birds, write_cars
from tests.invkit.data import detected, test_pascal3d


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, Path]:
    """By name of the experiment: birds in CUB's layout, cars in PASCAL3D+'s, in SRN's, CARLA's and ImageNet's."""
    root = tmp_path_factory.mktemp("data")
    write_birds(root / "birds", train=4, val=2, test=2, num_species=2, novel_views=1)
    for category in ("cars", "chairs"):
        write_cars(
            root / category, train_objects=2, val_objects=1, test_objects=1, train_views=2, test_views=1, size=32
        )
    for folder in sorted((root / "chairs").glob("cars_*")):
        folder.rename(folder.with_name(folder.name.replace("cars", "chairs")))
    for split in ("train", "val"):
        test_pascal3d.write(root / "pascal3d", split)
    detected.write(root / "pascal3d", "p3d")
    detected.write_carla(root / "carla")
    detected.write(root / "imagenet")
    return {
        "p3d_car": root / "pascal3d",
        "carla": root / "carla",
        **dict.fromkeys(("imagenet_car", "p3d_car_imagenet"), root / "imagenet"),
        **dict.fromkeys(("shapenet_cars", "synthetic_cars"), root / "cars"),
        "shapenet_chairs": root / "chairs",
        **dict.fromkeys(("cub", "cub_subset", "synthetic_birds"), root / "birds"),
    }
