"""The volume renderer against its plain twin, the formulas of volume rendering, and known pictures."""

import math
from dataclasses import replace

import pytest
import torch

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from nerfinv.renderers.plain import PlainRenderer
from nerfinv.renderers.rays import box_segment, bundle, important, quantiles, stratified, weights_of
from nerfinv.renderers.volume import VolumeRenderer
from tests.nerfinv import filled
from tests.nerfinv.tiny_fields import around, bumpy_balls

KINDS = {
    "palette": {},
    "no palette": {"palette": 0},
    "density": {"signed_distance": False},
    "view dependent": {"view_dependent": True},
}


def extras_of(field) -> frozenset[str]:
    return frozenset({"depth", "coords", "normals"} | ({"shares"} if field.palette is not None else set()))


def unknowns(field, camera) -> list[torch.Tensor]:
    pose = [camera.quat, camera.scale, camera.shift] + ([camera.inv_focal] if camera.inv_focal.any() else [])
    return [field.planes, *pose, *field.decoder.parameters(), *field.density.parameters()]


# ---- Against the plain form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perspective", [False, True], ids=["weak", "perspective"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fine", [12, 0], ids=["fine", "coarse only"])
def test_values_and_gradients_are_those_of_the_plain_renderer(kind, perspective, fine):
    field = bumpy_balls(dtype=torch.float64, **KINDS[kind])
    camera = around(perspective=perspective, dtype=torch.float64)
    options = {"size": 12, "coarse": 16, "fine": fine, "background": 1.0}
    extras = extras_of(field)
    fast = VolumeRenderer(**options)(field, camera, extras=extras)
    slow = PlainRenderer(**options)(field, camera, extras=extras)
    for name in {"rgb", "mask"} | extras:
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), rtol=0, atol=3e-5, msg=name)
    assert 0.05 < fast.mask.mean() < 0.95
    rng = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(slow.rgb.shape, generator=rng, dtype=torch.float64) for _ in range(2)]
    losses = [
        (image.rgb * cotangents[0]).sum() + (image.coords * cotangents[1]).sum() + image.mask.square().sum()
        for image in (fast, slow)
    ]
    gradients = [torch.autograd.grad(loss, unknowns(field, camera)) for loss in losses]
    for ours, plain in zip(*gradients, strict=True):
        assert (ours - plain).norm() <= 3e-4 * plain.norm()


def test_nothing_is_lost_where_nothing_may_be_dropped():
    field, camera = bumpy_balls(dtype=torch.float64), around(perspective=True, dtype=torch.float64)
    fast = VolumeRenderer(12, coarse=16, fine=12, dropped=0.0)(field, camera)
    slow = PlainRenderer(12, coarse=16, fine=12)(field, camera)
    torch.testing.assert_close(fast.rgb, slow.rgb, rtol=0, atol=2e-6)  # what lies behind full opacity


def test_samples_without_effect_are_not_decoded():
    field, camera = bumpy_balls(beta=0.005, alpha=0.01), around(perspective=True)
    renderer = VolumeRenderer(16, coarse=16, fine=16)
    seen = 0
    decode = field.decoder.forward

    def counted(features):
        nonlocal seen
        seen += len(features)
        return decode(features)

    field.decoder.forward = counted
    renderer(field, camera)
    assert 0 < seen < 0.15 * 2 * 16**2 * 32


@pytest.mark.parametrize("options", [{"max_points": 32 * 7}, {"checkpointing": True}], ids=["parts", "checkpointing"])
def test_saving_memory_changes_nothing(options):
    field, camera = bumpy_balls(dtype=torch.float64), around(perspective=True, dtype=torch.float64)
    extras = extras_of(field)
    once = VolumeRenderer(10, coarse=16, fine=16)(field, camera, extras=extras)
    other = VolumeRenderer(10, coarse=16, fine=16, **options)(field, camera, extras=extras)
    for name in {"rgb", "mask"} | extras:
        torch.testing.assert_close(getattr(once, name), getattr(other, name), rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(image.rgb.pow(2).sum(), unknowns(field, camera)) for image in (once, other)]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_images_of_a_batch_are_those_rendered_alone():
    field, camera = bumpy_balls(3), around(3, perspective=True)
    renderer = VolumeRenderer(12, coarse=16, fine=16)
    together = renderer(field, camera)
    for index in range(3):
        torch.testing.assert_close(renderer(field[index], camera[index]).rgb, together.rgb[index : index + 1])


def test_the_gradient_of_the_pose_by_finite_differences_where_samples_stay():
    """The places of the samples carry no gradient, so the samples are held: one pixel's ray, moved with the camera."""
    field = bumpy_balls(1, dtype=torch.float64, beta=0.2, alpha=0.3)
    camera = around(1, perspective=True, dtype=torch.float64)
    rays, _ = bundle(camera, 4, field.half_side, 0.5)
    t = stratified(rays.near, rays.far, 16, random=False)

    def picture(quat, scale, shift, inv_focal):
        moved, _ = bundle(Camera(quat, scale, shift, inv_focal), 4, field.half_side, 0.5)
        points = moved.points(t).flatten(0, 1)[None]
        weights, _ = weights_of(field.sigma(points).view(t.shape), t)
        return (weights[..., None] * field.color(points).view(*t.shape, 3)).sum(dim=1)

    pose = (camera.quat, camera.scale, camera.shift, camera.inv_focal)
    assert torch.autograd.gradcheck(picture, pose, eps=1e-7, atol=1e-5, rtol=1e-3)


def test_an_image_that_is_not_a_number_spoils_itself_alone():
    field, camera = bumpy_balls(2), around(2, perspective=True).detach()
    planes = field.planes.detach().clone()
    planes[1] = torch.nan
    image = VolumeRenderer(8, coarse=8, fine=8)(replace(field, planes=planes), camera)
    assert bool(image.mask[1].isnan().any())
    alone = VolumeRenderer(8, coarse=8, fine=8)(field[0], camera[0])
    torch.testing.assert_close(image.rgb[:1], alone.rgb)
    camera = replace(camera, shift=torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]))
    image = VolumeRenderer(8, coarse=8, fine=8)(field, camera)
    assert bool(image.rgb[0].isfinite().all())


# ---- Random samples --------------------------------------------------------------------------------------------------


def test_random_samples_differ_and_agree_on_average():
    field, camera = bumpy_balls(1, beta=0.1, alpha=0.2), around(1, perspective=True)
    renderer = VolumeRenderer(12, coarse=16, fine=16, random=True)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([renderer(field, camera).rgb for _ in range(200)])
        quiet = VolumeRenderer(12, coarse=64, fine=64)(field, camera).rgb
    assert (draws[0] - draws[1]).abs().max() > 1e-3
    assert (draws.mean(dim=0) - quiet).abs().max() < 0.03
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(renderer(field, camera).rgb, draws[0])


def test_random_places_are_spread_like_the_distribution():
    torch.manual_seed(0)
    near, far = torch.zeros(2000), torch.full((2000,), 4.0)
    t = stratified(near, far, 4, random=True)
    assert bool(((t >= torch.arange(4)) & (t <= torch.arange(1, 5))).all())
    assert t.mean(dim=0).tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.03)
    weights = torch.tensor([[0.0, 0.1, 0.6, 0.2, 0.0, 0.0]]).expand(20000, 6).contiguous()
    places = torch.arange(6.0).expand(20000, 6).contiguous()
    drawn = important(places, weights, 3, random=True)
    # Spread to neighbors and raised: (.05, .35, .6, .4, .1, 0) + .01; the first and last have no bin of their own.
    mass = torch.tensor([0.36, 0.61, 0.41, 0.11]) + 1e-5
    found = torch.histc(drawn, 4, 0.5, 4.5) / drawn.numel()
    assert found.tolist() == pytest.approx((mass / mass.sum()).tolist(), abs=0.01)
    assert bool((drawn.diff(dim=1) >= 0).all())


# ---- Rays ------------------------------------------------------------------------------------------------------------


def test_rays_that_miss_leave_background_and_a_gradient_of_zero():
    field = bumpy_balls(1)
    camera = replace(around(1, perspective=True), shift=torch.tensor([[30.0, 0.0]]).requires_grad_())
    image = VolumeRenderer(8, coarse=8, fine=8, background=1.0)(field, camera, extras=extras_of(field))
    assert torch.equal(image.rgb, torch.ones(1, 3, 8, 8))
    for name in ("mask", "depth", "normals", "coords", "shares"):
        assert not getattr(image, name).any()
    (gradient,) = torch.autograd.grad(image.rgb.sum(), field.planes)
    assert not gradient.any()


def test_axis_parallel_rays_are_between_two_faces_or_not():
    origins = torch.tensor([[0.0, 0.0, -3.0], [1.0, 0.5, -3.0], [1.5, 0.0, -3.0], [-1.0, -1.0, 0.0]])
    near, far = box_segment(origins, torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3), 1.0)
    assert near[[0, 1, 3]].tolist() == [2.0, 2.0, -1.0]
    assert far[[0, 1, 3]].tolist() == [4.0, 4.0, 1.0]
    assert near[2] > far[2]


def test_a_weak_camera_turned_by_90_degrees_renders_finite_pictures():
    """Its rays run along the faces of the box, some of them in one."""
    field = bumpy_balls(1)
    quat = torch.tensor([[math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0]]).requires_grad_()
    camera = Camera(quat, torch.ones(1), torch.zeros(1, 2), torch.zeros(1))
    image = VolumeRenderer(8, coarse=8, fine=8, offset=0.0)(field, camera)
    assert bool(image.rgb.isfinite().all())
    assert image.mask.max() > 0.9
    (gradient,) = torch.autograd.grad(image.rgb.sum(), quat)
    assert bool(gradient.isfinite().all())


def test_what_lies_behind_a_perspective_camera_is_not_seen():
    """The camera stands in the box; what it sees begins in front of it."""
    camera = Camera(torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1), torch.zeros(1, 2), torch.tensor([2.0]))
    rays, hit = bundle(camera, 5, 1.0, 0.5)
    eye = torch.tensor([0.0, 0.0, -0.5])
    assert bool(hit.all())
    nearest = rays.origins + rays.directions * rays.near[:, None]
    torch.testing.assert_close((nearest - eye).norm(dim=1), torch.full((25,), 0.1))
    assert bool(((nearest - eye)[:, 2] > 0).all())


@pytest.mark.parametrize("options", [{"size": 0}, {"coarse": 3}, {"fine": -1}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        VolumeRenderer(**options)


def test_shares_of_a_field_without_a_palette_are_refused():
    with pytest.raises(ValueError, match="no palette"):
        VolumeRenderer(8, coarse=8, fine=8)(
            bumpy_balls(1, palette=0), around(1, perspective=False), extras=frozenset({"shares"})
        )


# ---- Known numbers ---------------------------------------------------------------------------------------------------


def test_known_weights_of_six_samples():
    sigma = torch.tensor([[0.0, 2.0, 0.5, 8.0, 1.0, 3.0]])
    t = torch.tensor([[1.0, 1.2, 1.5, 1.6, 2.0, 2.1]])
    weights, light = weights_of(sigma, t)
    filled.assert_numbers(weights, [[0, 0.45118833, 0.02676588, 0.50076604, 0.00202503, 0]], 1e-6)
    assert weights.sum().item() == pytest.approx(0.98074532, abs=1e-6)
    assert (weights * t).sum().item() == pytest.approx(1.38685060, abs=1e-6)
    assert light[0, -1].item() == pytest.approx(1 - 0.98074532, abs=1e-6)
    rgb = torch.stack([torch.linspace(-1, 1, 6), torch.linspace(0.5, -0.5, 6), torch.full((6,), 0.3)], dim=1)
    filled.assert_numbers(weights @ rgb, [[-0.17469797, 0.08734898, 0.29422358]], 1e-6)
    filled.assert_numbers(weights @ rgb + 1 - weights.sum(), [[-0.15544328, 0.10660367, 0.31347826]], 1e-6)


def test_known_quantiles_of_these_weights():
    t = torch.tensor([[1.0, 1.2, 1.5, 1.6, 2.0, 2.1]])
    weights, _ = weights_of(torch.tensor([[0.0, 2.0, 0.5, 8.0, 1.0, 3.0]]), t)
    edges = torch.tensor([[1.1, 1.35, 1.55, 1.8, 2.05]])
    mass = torch.tensor([[0.26823726, 0.28265470, 0.29707214, 0.15203591]])
    cumulated = torch.nn.functional.pad(mass.cumsum(dim=1), (1, 0))
    ends = quantiles(edges, cumulated, torch.linspace(0, 1, 6)[None])
    filled.assert_numbers(ends, [[1.1, 1.28640223, 1.44323230, 1.59132659, 1.75963593, 2.05]], 1e-5)
    middles = quantiles(edges, cumulated, ((torch.arange(6) + 0.5) / 6)[None])
    filled.assert_numbers(important(t, weights, 6, random=False), middles.tolist(), 1e-5)


def test_known_rays():
    perspective = filled.cameras(perspective=True)[0]
    rays, _ = bundle(perspective, 8, 1.4, 0.0)  # of a square picture; rows and columns are as in one 6 high
    distance = 1 / (perspective.inv_focal * rays.depth_scale)  # of the eye, before the plane of the center
    corner, inner = rays[0], rays[2 * 8 + 5]
    filled.assert_numbers(corner.points(-distance[:1, None]), [[[-2.5998390, 0.2857143, -2.1284504]]], 1e-6)
    assert inner.near.item() + distance[21].item() > 0
    rows = torch.linspace(-0.5, 0.5, 7)[:-1] * 2
    assert rows[2] != (torch.arange(8) / 4 - 1)[2]  # so known rows of a 6 x 8 picture need its own grid
    tall = Camera.rays(perspective, (6, 8), 0.0)
    direction = tall.directions[0, 2, 5]
    filled.assert_numbers(direction, [0.7583812, -0.1676085, 0.6298931], 1e-6)
    near, far = box_segment(tall.origins[0, 2, 5][None], direction[None], 1.4)
    axis = rotation.rotate(rotation.conjugate(perspective.quat), torch.tensor([[[0.0, 0.0, 1.0]]]))[0, 0]
    eye = 1 / (perspective.inv_focal * perspective.scale * (direction @ axis))
    assert [(near + eye).item(), (far + eye).item()] == pytest.approx([1.5821054, 5.2741795], abs=1e-5)
    weak = filled.cameras(perspective=False)[0]
    tall = weak.rays((6, 8), 0.0)
    near, far = box_segment(tall.origins[0, 2, 5][None], tall.directions[0, 2, 5][None], 2.0)
    eye = 10 / 0.7
    assert [(near + eye).item(), (far + eye).item()] == pytest.approx([11.8035727, 16.8035717], abs=1e-4)


CASES = {
    "weak": (
        {"scene_range": 2.0},
        {"perspective": False},
        {
            "rgb": ((0.04658625, 0.06020918, -0.05489894, 0.1770571), (0.0412377, 0.1312380, 0.1496006)),
            "depth": ((5.33047, 5.469855, 0, 12.97929), (12.3931665,)),
            "mask": ((0.4021026, 0.4150588, 0, 0.957874), (0.9451022,)),
            "normals": ((0.00177691, 0.1889461, -0.6647422, 0.9081305), (0.1662207, 0.3210286, -0.1331825)),
            "coords": ((-0.1554109, 0.5290321, -1.341507, 1.837804), (-0.9878953, -0.1687682, -0.5299612)),
            "shares": (
                (0.04021026, 0.07795486, 0, 0.4445817),
                (
                    0.4087314, 0.0734960, 0.0251244, 0.0080954, 0.0160410, 0.0693064, 0.0979713, 0.0165477, 0.0171736,
                    0.2126151,
                ),
            ),
        },
    ),
    "perspective": (
        {"scene_range": 1.4},
        {"perspective": True},
        {
            "rgb": ((0.03861945, 0.05093343, -0.04636218, 0.1588782), (0.0633641, 0.1314519, 0.1293664)),
            "depth": ((0.8867237, 0.9576634, 0, 2.638363), (2.4311833,)),
            "mask": ((0.3304709, 0.3572985, 0, 0.9034687), (0.9034687,)),
            "normals": ((0.00159570, 0.1414901, -0.5414646, 0.5763533), (0.1658592, 0.3052691, -0.1024052)),
            "coords": ((-0.09563327, 0.324769, -0.9060547, 0.8700049), (-0.5686105, -0.0734551, -0.3008395)),
        },
    ),
    "cropped": (
        {"scene_range": 1.4},
        {"perspective": True, "box": (-0.6, -0.2, 0.5, 0.9)},
        {
            "rgb": ((0.04331611, 0.05638646, -0.04614562, 0.1514047), (0.0119202, 0.1067685, 0.1274731)),
            "mask": ((0.3725985, 0.3784996, 1.13e-6, 0.8940052), (0.7292101,)),
            "coords": ((-0.09915126, 0.3600494, -0.9067175, 0.8329136), (-0.4232729, 0.2619956, -0.5665005)),
        },
    ),
    "opengl axes, white": (
        {"scene_range": 0.55},
        {"perspective": True, "flipped": False, "zoom": 3.0, "background": 1.0},
        {
            "rgb": ((0.8641726, 0.1641718, 0.476812, 1), (0.6096991, 0.6399208, 0.6368864)),
            "mask": ((0.154617, 0.18624, 0, 0.5822136), (0.4222059,)),
            "normals": ((0.8525328, 0.1901892, 0.1843902, 1), (0.6698614, 0.7006419, 0.6545832)),
            "coords": ((0.00012077, 0.04985666, -0.1683491, 0.2000501), (-0.0228547, -0.0108468, -0.1021222)),
        },
    ),
    "view dependent": (
        {"scene_range": 3.0, "view_dependent": True},
        {"perspective": True, "flipped": False, "zoom": 1 / 3, "background": 1.0},
        {
            "rgb": ((0.8018941, 0.2945468, 0.08165497, 1), (0.1700300, 0.2887684, 0.2422097)),
            "mask": ((0.2345666, 0.3477911, 0, 0.9906526), (0.9139783,)),
            "coords": ((0.08279821, 0.5959284, -2.369082, 2.442218), (0.5526690, -0.2867055, -0.9585091)),
        },
    ),
    "no palette": (
        {"scene_range": 1.4, "palette_size": 0},
        {"perspective": True},
        {"rgb": ((0.1439475, 0.2593697, -0.3899081, 0.7979077), (0.7979077, 0.5062393, 0.0202713))},
    ),
    "density": (
        {"scene_range": 1.4, "signed_distance": False},
        {"perspective": True},
        {
            "rgb": ((0.08388295, 0.04621769, -0.01672022, 0.2608192), (0.0705369, 0.0903234, 0.0736383)),
            "mask": ((0.6076019, 0.21318, 0, 0.9770556), None),
        },
    ),
    "coarse only": (
        {"scene_range": 1.4},
        {"perspective": True, "fine": 0},
        {
            "rgb": ((0.03860504, 0.05101702, -0.04713696, 0.1576523), (0.0654569, 0.1315990, 0.1284943)),
            "mask": ((0.330477, 0.3578111, 0, 0.9048429), None),
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def generators():
    made = {}

    def get(**options):
        key = tuple(sorted((name, value) for name, value in options.items() if name != "scene_range"))
        if key not in made:
            with torch.no_grad():
                generator = filled.filled_generator(**options)
                made[key] = generator(generator.style(filled.latents()))
        return replace(made[key], half_side=options["scene_range"])

    return get


@pytest.mark.parametrize("case", CASES)
def test_known_pictures(case, generators):
    options, view, expected = CASES[case]
    field = generators(**options)
    camera = filled.cameras(perspective=view["perspective"], flipped=view.get("flipped", True))
    camera = replace(camera, scale=camera.scale * view.get("zoom", 1.0))
    if "box" in view:
        camera = camera.crop(torch.tensor([view["box"]] * 2))
    background = view.get("background", 0.0)
    renderer = VolumeRenderer(16, coarse=16, fine=view.get("fine", 16), background=background, offset=0.0)
    with torch.no_grad():
        image = renderer(field, camera, extras=frozenset(expected) - {"rgb", "mask"})
    for name, (stats, pixel) in expected.items():
        picture = getattr(image, name)
        if name == "depth":  # along the ray from the eye; the released weak camera is 10 / s before the center
            rays, _ = bundle(camera, 16, field.half_side, 0.0)
            along = rays.depth_scale.view(2, 1, 16, 16)
            scale, k = (part[:, None, None, None] for part in (camera.scale, camera.inv_focal))
            eye = 1 / (k * along) if view["perspective"] else 10 / scale
            picture = picture / along + image.mask * eye
        if name == "normals":  # in object axes, over the background
            turned = rotation.rotate(rotation.conjugate(camera.quat), picture.flatten(2).transpose(1, 2))
            picture = turned.transpose(1, 2).view_as(picture) + background * (1 - image.mask)
        tolerance = 2e-3 * max(1.0, abs(stats[3]))
        assert filled.stats(picture).tolist() == pytest.approx(stats, abs=tolerance), name
        if pixel is not None:
            assert picture[0, :, 5, 9].tolist() == pytest.approx(pixel, abs=tolerance), name


def test_the_palette_can_be_recovered_from_a_picture_of_its_shares(generators):
    """Compositing and the palette are linear: rgb = shares @ palette, which least squares inverts."""
    field = generators(scene_range=2.0)
    camera = filled.cameras(perspective=False)
    with torch.no_grad():
        image = VolumeRenderer(16, coarse=16, fine=16)(field, camera, extras=frozenset({"shares"}))
    shares = image.shares.flatten(2).transpose(1, 2)
    rgb = image.rgb.flatten(2).transpose(1, 2)
    torch.testing.assert_close(shares @ field.palette, rgb, rtol=0, atol=1e-6)
    found = torch.linalg.lstsq(shares[0].double(), rgb[0].double()).solution
    torch.testing.assert_close(found.float(), field.palette[0], rtol=0, atol=1e-4)
    other = torch.linspace(-1, 1, 30).view(1, 10, 3).expand(2, 10, 3)
    with torch.no_grad():
        recolored = VolumeRenderer(16, coarse=16, fine=16)(field.with_palette(other), camera).rgb
    torch.testing.assert_close(recolored.flatten(2).transpose(1, 2), shares @ other, rtol=0, atol=1e-6)
