"""Batches of views: subsets, joins, devices, and the errors they give."""

import pytest
import torch

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.types import Views


def make_views(rng, count: int = 4, *, labels: bool = True) -> Views:
    camera = Camera(
        rotation.random(count, rng),
        torch.rand(count, generator=rng),
        torch.rand(count, 2, generator=rng),
        torch.zeros(count),
    )
    return Views(
        torch.rand(count, 3, 6, 6, generator=rng),
        torch.ones(count, 1, 6, 6),
        camera,
        torch.arange(count) if labels else None,
        torch.arange(count),
    )


def test_parts_and_whole_are_the_same(rng):
    views = make_views(rng)
    assert len(views) == 4
    joined = Views.cat([views[0], views[1:3], views[[3]]])
    for name in ("rgb", "mask", "label", "index"):
        assert torch.equal(getattr(joined, name), getattr(views, name))
    assert torch.equal(joined.camera.quat, views.camera.quat)
    assert torch.equal(views.repeat(2).index, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert [len(one) for one in views] == [1, 1, 1, 1]
    assert torch.equal(views[-1].index, torch.tensor([3]))


def test_where_takes_each_image_from_one_side_or_the_other(rng):
    views, others = make_views(rng), make_views(rng)
    chosen = torch.tensor([True, False, False, True])
    mixed = views.where(chosen, others)
    for name in ("rgb", "mask"):
        assert torch.equal(
            getattr(mixed, name), torch.where(chosen[:, None, None, None], getattr(views, name), getattr(others, name))
        )
    assert torch.equal(mixed.camera.quat, torch.where(chosen[:, None], views.camera.quat, others.camera.quat))


def test_conversion_keeps_integers(rng):
    views = make_views(rng).to("cpu", dtype=torch.float64)
    assert views.rgb.dtype == views.camera.quat.dtype == torch.float64
    assert views.label.dtype == torch.int64


def test_mirror_twice_is_the_original(rng):
    views = make_views(rng)
    again = views.mirror(6).mirror(6)
    assert torch.equal(again.rgb, views.rgb)
    torch.testing.assert_close(again.camera.to_cmr(), views.camera.to_cmr())


def test_mistakes_are_named(rng):
    with pytest.raises(ValueError, match="label"):
        Views.cat([make_views(rng), make_views(rng, labels=False)])
    with pytest.raises(ValueError, match="nothing"):
        Views.cat([])
    with pytest.raises(IndexError):
        make_views(rng)[4]
