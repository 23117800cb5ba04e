"""Frozen networks against torchvision, pytorch-fid and lpips with the same weights, and against published numbers."""

import hashlib
import subprocess
import sys
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate, max_pool2d, pad

from invkit.features import weights
from invkit.features.alexnet import AlexNet
from invkit.features.frozen import Features
from invkit.features.inception import InceptionFID, InceptionTV
from invkit.features.lpips import LPIPS
from invkit.features.squeezenet import SqueezeNet
from invkit.features.vgg import VGG16, VGG19
from invkit.features.weights import RANDOM, WEIGHTS, find
from invkit.metrics.kid import Kid

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No weights but those a test writes, and no way to get others."""

    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("INVKIT_WEIGHTS", raising=False)


def put(folder, name, tensors, monkeypatch):
    """Write `tensors` as the file of the weights `name`, whose hash the table then expects."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS[name].file
    torch.save(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.WEIGHTS, name, replace(WEIGHTS[name], sha256=digest[:8]))
    return path


def filled(key, shape):
    """The published rule for test weights: normal numbers seeded by the checksum of the entry's name."""
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    return torch.from_numpy(draw.astype(np.float32))


def normalized(image):
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (image / 2 + 0.5 - mean) / std


def on_meta(make):
    with torch.device("meta"):
        return make()


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_file_is_found_in_the_folder_then_in_the_variable_then_in_the_cache(tmp_path, monkeypatch):
    hub = put(tmp_path / "hub" / "hub" / "checkpoints", "vgg16", {"a": torch.zeros(1)}, monkeypatch)
    assert find("vgg16") == hub
    below = put(tmp_path / "named" / "below", "vgg16", {"a": torch.zeros(1)}, monkeypatch)
    monkeypatch.setenv("INVKIT_WEIGHTS", f"{tmp_path / 'nowhere'}:{tmp_path / 'named'}")
    assert find("vgg16") == below
    given = put(tmp_path / "given", "vgg16", {"a": torch.zeros(1)}, monkeypatch)
    assert find("vgg16", tmp_path / "given") == given
    assert find("vgg16", str(tmp_path / "absent")) == below


def test_an_absent_file_is_one_error_that_says_what_from_where_and_whereto(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        VGG19(folder=tmp_path)
    said = str(caught.value)
    assert "vgg19-dcbb9e9d.pth" in said
    assert "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth" in said
    assert f"put it into {tmp_path}" in said
    assert caught.value.__cause__ is None


def test_a_damaged_file_is_an_error_and_a_mended_one_is_not(tmp_path, monkeypatch):
    path = put(tmp_path, "vgg16", {"a": torch.arange(1000.0)}, monkeypatch)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"is damaged.*Delete it"):
        find("vgg16", tmp_path)
    path.write_bytes(whole)
    assert find("vgg16", tmp_path) == path


def test_unknown_weights_and_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown weights 'vgg18'; known are inception_tv"):
        VGG19(weights="vgg18")
    put(tmp_path, "vgg19", {"features.0.weight": torch.zeros(64, 3, 5, 5)}, monkeypatch)
    with pytest.raises(ValueError, match=r"vgg19-dcbb9e9d\.pth\): shape \(64, 3, 5, 5\) for 'features.0.weight'"):
        VGG19(folder=tmp_path)
    put(tmp_path, "vgg19", {}, monkeypatch)
    with pytest.raises(ValueError, match=r"no entry 'features\.0\.weight'"):
        VGG19(folder=tmp_path)


def test_the_table_agrees_with_the_libraries():
    from pytorch_fid.inception import FID_WEIGHTS_URL
    from torchvision import models

    urls = {
        "inception_tv": models.Inception_V3_Weights.IMAGENET1K_V1.url,
        "inception_fid": FID_WEIGHTS_URL,
        "vgg16": models.VGG16_Weights.IMAGENET1K_V1.url,
        "vgg19": models.VGG19_Weights.IMAGENET1K_V1.url,
        "alexnet": models.AlexNet_Weights.IMAGENET1K_V1.url,
        "squeezenet": models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
        "mask_rcnn": models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url,
    }
    for name, url in urls.items():
        assert WEIGHTS[name].url == url
        assert WEIGHTS[name].file == url.rsplit("/", 1)[1]
        assert WEIGHTS[name].file.endswith(f"-{WEIGHTS[name].sha256}.pth")


# ---- what all of them share --------------------------------------------------------------------------------------


def test_random_weights_are_the_same_each_time_and_touch_no_other_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = VGG16(("relu1_2",), weights=RANDOM)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second = VGG16(("relu1_2",), weights=RANDOM)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first.name == "vgg16-random"


def test_a_frozen_network_passes_gradients_to_the_picture_alone(rng):
    network = VGG16(("relu1_2", "relu2_1"), weights=RANDOM)
    assert not network.train().training
    image = torch.rand(1, 3, 16, 16, generator=rng, requires_grad=True)
    sum(layer.sum() for layer in network(image)).backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


def test_importing_features_and_metrics_is_light():
    code = (
        "import sys, invkit.metrics, invkit.features.inception, invkit.features.lpips, invkit.features.vgg;"
        "import invkit.features.squeezenet;"
        "print([name for name in ('torchvision', 'lpips', 'pytorch_fid', 'skimage', 'scipy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ---- VGG and AlexNet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours, make, last", [(VGG16, "vgg16", "relu5_3"), (VGG19, "vgg19", "relu5_4")])
def test_every_layer_is_where_torchvision_has_it(ours, make, last, tmp_path, monkeypatch):
    from torchvision import models

    network = on_meta(lambda: getattr(models, make)(weights=None))
    # Empty tensors of the right shapes; one of a wrong shape or name would be refused.
    stored = {key: torch.zeros(()).expand(value.shape) for key, value in network.state_dict().items()}
    monkeypatch.setattr(weights, "load", lambda name, folder: stored)
    loaded = ours((last,))
    kinds = [type(part) for part in network.features][: len(loaded.parts)]
    assert [type(part) for part in loaded.parts] == kinds
    assert loaded.name == make


def test_vgg_is_torchvisions(rng, tmp_path, monkeypatch):
    from torchvision import models

    network = on_meta(lambda: models.vgg19(weights=None)).features[:21]
    weights.draw(network, seed=5)
    stored = {f"features.{key}": value for key, value in network.state_dict().items()}
    for key, value in stored.items():
        if key.endswith("bias"):
            value.uniform_(-0.1, 0.1, generator=rng)
    put(tmp_path, "vgg19", {**stored, "classifier.0.weight": torch.zeros(2)}, monkeypatch)
    image = torch.rand(2, 3, 40, 56, generator=rng) * 2 - 1
    expected, signal = {}, normalized(image)
    with torch.no_grad():
        for i, part in enumerate(network):
            signal = part(signal).clone()
            expected[i] = signal
    layers = {"relu3_1": 11, "pool1": 4, "relu1_2": 3, "relu4_1": 20}
    read = VGG19(tuple(layers), folder=tmp_path)(image)
    for (name, i), activation in zip(layers.items(), read, strict=True):
        torch.testing.assert_close(activation, expected[i], rtol=1e-4, atol=1e-5, msg=name)


def test_the_slice_of_the_texture_loss_has_the_published_values():
    def noise(index, count):
        phase = 12.9898 * (torch.arange(count, dtype=torch.float64) % 65521) + 78.233 * (index + 1)
        value = phase.sin() * 43758.5453
        return 2 * (value - value.floor()) - 1

    network = VGG19(("relu3_1",), weights=RANDOM)
    convs = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert len(convs) == 5
    for n, conv in enumerate(convs):
        weight = noise(100 + 2 * n, conv.weight.numel()).view(conv.weight.shape)
        conv.weight.data = (weight * (6 / conv.weight[0].numel()) ** 0.5).float()
        conv.bias.data = (0.1 * noise(101 + 2 * n, conv.bias.numel())).float()
    c, y, x = torch.meshgrid(torch.arange(3.0), torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = torch.sin(0.2 * (c + 1) * x + 0.1 * y)[None]
    mask = ((x[:1] - 15) ** 2 + (y[:1] - 17) ** 2 <= 121).float()[None]
    (features,) = network(image, mask)
    assert features.shape == (1, 256, 8, 8)
    assert float(features.sum()) == pytest.approx(13926.356, rel=1e-4)
    assert float(features[0, 0, 3, 4]) == pytest.approx(0.603169, rel=1e-4)
    assert float(features[0, 7, 2, 5]) == pytest.approx(0.067232, rel=1e-4)
    assert float(features[0, 200, 4, 4]) == 0
    assert float(features[0, :, 0, 0].sum()) == pytest.approx(46.493614, rel=1e-4)


def test_outside_the_mask_is_the_mean_color(rng):
    network = VGG19(("relu2_1",), weights=RANDOM)
    image, mask = torch.rand(1, 3, 16, 16, generator=rng) * 2 - 1, torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    mean = (torch.tensor([0.485, 0.456, 0.406]) * 2 - 1)[:, None, None]
    torch.testing.assert_close(
        network(image, mask)[0], network(image * mask + mean * (1 - mask))[0], rtol=1e-4, atol=1e-5
    )


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match=r"vgg16.*relu9_1.*conv1_1, relu1_1"):
        VGG16(("relu1_1", "relu9_1"), weights=RANDOM)
    with pytest.raises(ValueError, match="vgg16"):
        VGG16((), weights=RANDOM)


def test_the_normalised_vgg_reflects_borders_rounds_pools_up_and_brings_its_colors(rng, tmp_path, monkeypatch):
    names = {
        "conv1_1": (3, 64),
        "conv1_2": (64, 64),
        "conv2_1": (64, 128),
        "conv2_2": (128, 128),
        "conv3_1": (128, 256),
    }
    stored = {"pre.weight": torch.randn(3, 3, 1, 1, generator=rng), "pre.bias": torch.randn(3, generator=rng)}
    for name, (inputs, outputs) in names.items():
        stored[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=rng) * (2 / (9 * inputs)) ** 0.5
        stored[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=rng)
    put(tmp_path, "vgg19_normalised", stored, monkeypatch)
    image = torch.rand(2, 3, 18, 30, generator=rng) * 2 - 1
    signal = conv2d(image / 2 + 0.5, stored["pre.weight"], stored["pre.bias"])
    for name in names:
        signal = conv2d(pad(signal, (1, 1, 1, 1), "reflect"), stored[f"{name}.weight"], stored[f"{name}.bias"]).relu()
        if name in ("conv1_2", "conv2_2"):
            signal = max_pool2d(signal, 2, ceil_mode=True)
    network = VGG19(("relu3_1",), weights="vgg19_normalised", folder=tmp_path)
    assert network.name == "vgg19_normalised"
    assert signal.shape[-2:] == (5, 8)
    torch.testing.assert_close(network(image)[0], signal, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"no entry 'conv3_2\.weight'"):
        VGG19(("relu3_2",), weights="vgg19_normalised", folder=tmp_path)


def test_the_real_normalised_vgg_has_mean_activations_near_one_on_photographs():
    photographs = sorted((SHARED / "cub_subset").rglob("*.jpg"))[:200:40]
    if not photographs or not (SHARED / "weights").is_dir():
        pytest.skip("no real weights and photographs beside this checkout")
    from invkit.images import read_image

    layers = ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1")
    network = VGG19(layers, weights="vgg19_normalised", folder=SHARED / "weights")
    images = torch.stack([interpolate(read_image(path)[None].float(), (96, 96))[0] for path in photographs])
    means = [float(layer.mean()) for layer in network(images * 2 - 1)]
    assert all(0.75 < mean < 1.3 for mean in means), means


def test_alexnet_is_torchvisions(rng, tmp_path, monkeypatch):
    from torchvision import models

    network = on_meta(lambda: models.alexnet(weights=None)).features
    weights.draw(network, seed=5)
    put(tmp_path, "alexnet", {f"features.{k}": v for k, v in network.state_dict().items()}, monkeypatch)
    image = torch.rand(2, 3, 80, 96, generator=rng) * 2 - 1
    ours = AlexNet(("conv1", "pool2", "relu5"), folder=tmp_path)
    assert ours.name == "alexnet"
    with torch.no_grad():
        expected = [network[:stop](normalized(image)) for stop in (1, 6, 12)]
    for a, b in zip(ours(image), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- LPIPS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net, layer", [("alex", "AlexNet"), ("vgg", "VGG16"), ("squeeze", "SqueezeLayers")])
def test_lpips_is_that_of_its_package(net, layer, rng):
    ours = LPIPS(net, weights=RANDOM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        # The classifier, most of the network's weights, is dropped at once: it need not be drawn.
        drawing = nn.init.normal_, nn.Linear.reset_parameters
        nn.init.normal_, nn.Linear.reset_parameters = lambda *a, **k: None, lambda self: None
        try:
            theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        finally:
            nn.init.normal_, nn.Linear.reset_parameters = drawing
    for mine, other in zip(
        (part for part in ours.modules() if isinstance(part, nn.Conv2d)),
        (part for part in theirs.net.modules() if isinstance(part, nn.Conv2d)),
        strict=True,
    ):
        other.load_state_dict(mine.state_dict())
    a = torch.rand(3, 3, 64, 64, generator=rng) * 2 - 1
    b = (a + 0.4 * torch.randn(a.shape, generator=rng)).clamp(-1, 1)
    with torch.no_grad():
        expected = theirs(a, b).flatten()
    assert float(expected.min()) > 1e-3
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-7)
    assert ours.name == f"lpips-{net}-0.1-random"
    assert type(ours.backbone).__name__ == layer


def test_lpips_has_the_published_values():
    network = LPIPS("vgg", weights=RANDOM)
    for i, conv in enumerate(part for part in network.modules() if isinstance(part, nn.Conv2d)):
        number = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28][i]
        weight = filled(f"vgg16.features.{number}.weight", conv.weight.shape)
        conv.weight.data = weight * (2 / conv.weight[0].numel()) ** 0.5
        conv.bias.data = 0.1 * filled(f"vgg16.features.{number}.bias", conv.bias.shape)
    for i, channels in enumerate((64, 128, 256, 512, 512)):
        getattr(network, f"head{i}").copy_(filled(f"lin{i}", (1, channels, 1, 1)).abs().flatten() / channels)
    b, c, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 3, 64, 64)), indexing="ij")
    first, second = (
        torch.sin(0.05 * x * (c + 1) + 0.07 * y + 0.9 * b + 0.4 * c + phase).float() for phase in (0.0, 0.3)
    )
    torch.testing.assert_close(network(first, second), torch.tensor([0.00208552, 0.00201440]), rtol=1e-3, atol=0)


def test_lpips_of_equal_pictures_is_zero_and_its_gradient_is_finite_where_nothing_is_activated(rng):
    network = LPIPS("alex", weights=RANDOM)
    image = torch.rand(1, 3, 64, 64, generator=rng) * 2 - 1
    assert float(network(image, image)) == 0
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.bias.data.fill_(-100.0)
    image.requires_grad_()
    network(image, -image.detach()).sum().backward()
    assert bool(image.grad.isfinite().all())


def test_lpips_without_its_backbone_asks_for_that_file():
    with pytest.raises(FileNotFoundError, match=r"vgg16-397923af\.pth"):
        LPIPS("vgg")
    with pytest.raises(FileNotFoundError, match=r"alexnet-owt-7be5be79\.pth"):
        LPIPS("alex")
    with pytest.raises(ValueError, match="no net 'resnet'"):
        LPIPS("resnet", weights=RANDOM)


# ---- Inception ---------------------------------------------------------------------------------------------------


def unlike_new(network, rng):
    """Give the normalizations statistics, as trained ones have."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=rng).mul_(0.1)
            part.running_var.uniform_(0.8, 1.25, generator=rng)
            part.bias.data.normal_(generator=rng).mul_(0.1)


def test_inception_is_torchvisions(rng):
    from torchvision.models import Inception3

    ours = InceptionTV(RANDOM)
    unlike_new(ours, rng)
    theirs = on_meta(lambda: Inception3(init_weights=False, aux_logits=True)).to_empty(device="cpu")
    theirs.load_state_dict(ours.trunk.state_dict(), strict=False)
    theirs.fc = nn.Identity()
    small, full = torch.rand(1, 3, 40, 64, generator=rng), torch.rand(1, 3, 299, 299, generator=rng)
    with torch.no_grad():
        for picture in (small, full):
            resized = interpolate(picture, (299, 299), mode="bilinear", align_corners=False, antialias=False)
            expected = theirs.eval()(2 * resized - 1)
            assert float(expected.std()) > 0.01
            torch.testing.assert_close(ours(2 * picture - 1), expected, rtol=1e-3, atol=1e-4)
    assert ours.name == "inception_tv-random"
    assert ours.dim == 2048


def test_inception_of_fid_is_pytorch_fids(rng, monkeypatch):
    from pytorch_fid import inception

    ours = InceptionFID(RANDOM)
    unlike_new(ours, rng)
    head = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    stored = {**ours.trunk.state_dict(), **head}
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: stored)
    theirs = inception.InceptionV3().eval()
    picture = torch.rand(1, 3, 50, 50, generator=rng)
    with torch.no_grad():
        expected = theirs(picture)[0].flatten(1)
        torch.testing.assert_close(ours(2 * picture - 1), expected, rtol=1e-3, atol=1e-4)
        # The two networks differ in how they pool: with the same weights they see differently.
        other = InceptionTV(RANDOM)
        other.trunk.load_state_dict(ours.trunk.state_dict())
        assert float((other(2 * picture - 1) - expected).abs().max()) > 0.01
    assert ours.name == "inception_fid-random"


@pytest.mark.parametrize("make, name", [(InceptionTV, "inception_tv"), (InceptionFID, "inception_fid")])
def test_inception_reads_its_file(make, name, monkeypatch):
    like = make(RANDOM).trunk
    # Stored as one number expanded to each shape, with the classifier and without the counts of batches of old files.
    stored = {k: torch.full((), 0.5).expand(v.shape) for k, v in like.state_dict().items() if "num_batches" not in k}
    monkeypatch.setattr(
        weights, "load", lambda asked, folder: {**stored, "fc.bias": torch.zeros(1)} if asked == name else {}
    )
    network = make()
    assert network.name == name
    assert all(bool((value == 0.5).all()) for value in network.parameters())


# ---- SqueezeNet --------------------------------------------------------------------------------------------------


def random_squeezenet(rng):
    """torchvision's, with weights and biases of the size trained ones have."""
    from torchvision.models import squeezenet1_1

    network = on_meta(lambda: squeezenet1_1(weights=None))
    weights.draw(network, seed=5)
    for key, value in network.state_dict().items():
        if key.endswith("bias"):
            value.uniform_(-0.1, 0.1, generator=rng)
    return network.eval()


@pytest.mark.parametrize("name, stored_as", [("squeezenet", torch.float32), ("squeezenet_caffe", torch.float16)])
def test_squeezenet_is_torchvisions(name, stored_as, rng, tmp_path, monkeypatch):
    theirs = random_squeezenet(rng).to(stored_as)
    put(tmp_path, name, theirs.state_dict(), monkeypatch)
    theirs.float()
    ours = SqueezeNet(name, folder=tmp_path)
    assert (ours.name, ours.dim) == (name, 512)
    assert isinstance(ours, Features)
    for shape in ((40, 64), (224, 224)):
        picture = torch.rand(2, 3, *shape, generator=rng)
        resized = interpolate(picture, (224, 224), mode="bilinear", align_corners=False, antialias=False)
        with torch.no_grad():
            activation = theirs.features(normalized(2 * resized - 1))
            seen = ours(2 * picture - 1)
        assert activation.shape == (2, 512, 13, 13)
        assert float(seen.std()) > 0.01
        torch.testing.assert_close(seen, activation.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)


def test_squeezenet_measures_sets_of_pictures_and_trains_nothing(rng):
    network = SqueezeNet(RANDOM)
    assert network.name == "squeezenet-random"
    assert not network.train().training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = torch.rand(1, 3, 32, 32, generator=rng, requires_grad=True)
    network(image).sum().backward()
    assert image.grad.abs().sum() > 0
    metric = Kid(network)
    assert metric.name == "kid@squeezenet-random"


def test_the_real_squeezenet_knows_a_bird_from_its_mirror_image_better_than_from_another_bird():
    photographs = sorted((SHARED / "cub_subset").rglob("*.jpg"))[:400:40]
    if not photographs or not (SHARED / "weights").is_dir():
        pytest.skip("no real weights and photographs beside this checkout")
    from invkit.images import read_image

    network = SqueezeNet("squeezenet_caffe", folder=SHARED / "weights")
    images = torch.cat([interpolate(read_image(path)[None].float(), (128, 128)) for path in photographs]) * 2 - 1
    seen, mirrored = (nn.functional.normalize(network(batch)) for batch in (images, images.flip(-1)))
    assert (seen @ mirrored.T).argmax(dim=1).tolist() == list(range(len(images)))
