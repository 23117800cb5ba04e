"""Where the weights of frozen networks lie on this machine, and what to do about one that is absent.

Nothing here downloads. A file is looked for in the folders a user names and where the libraries keep theirs, and its
SHA-256 must begin as the table says, so that a truncated download is never measured with. Random weights are a choice
that has to be made by name, and that name goes into every result.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

RANDOM = "random"
"""The declared choice of weights drawn from a fixed seed; no number measured with them compares to a published one."""

FOLDERS = "INVKIT_WEIGHTS"
"""Environment variable with the folders to look in, separated as in PATH."""


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Args:
        file: its name.
        sha256: how the SHA-256 of its bytes begins, hexadecimal; "" where nobody has published it.
        url: where it comes from.
        purpose: what it is and what needs it.
    """

    file: str
    sha256: str
    url: str
    purpose: str


_TORCHVISION = "https://download.pytorch.org/models/"

WEIGHTS: Mapping[str, Weights] = {
    "inception_tv": Weights(
        "inception_v3_google-0cc3c7bd.pth",
        "0cc3c7bd",
        f"{_TORCHVISION}inception_v3_google-0cc3c7bd.pth",
        "torchvision's Inception-v3; FID and KID as MeshInversion and ConvMesh measure them",
    ),
    "inception_fid": Weights(
        "pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "the TensorFlow Inception of pytorch-fid; FID and KID as bootstrapped radiance-field inversion measures them",
    ),
    "vgg16": Weights(
        "vgg16-397923af.pth",
        "397923af",
        f"{_TORCHVISION}vgg16-397923af.pth",
        "torchvision's VGG-16; LPIPS-VGG",
    ),
    "vgg19": Weights(
        "vgg19-dcbb9e9d.pth",
        "dcbb9e9d",
        f"{_TORCHVISION}vgg19-dcbb9e9d.pth",
        "torchvision's VGG-19; the feature-level texture loss of MeshInversion",
    ),
    "vgg19_normalised": Weights(
        "vgg19_normalised_relu3_1.pth",
        "5a670a71d2c77a81",
        "https://github.com/jkbehne/GOTStyleTranfer (models/vgg_normalised_conv3_1.pth, converted)",
        "VGG-19 up to relu3_1, scaled to unit mean activations (Li et al., WCT); a small stand-in for vgg19",
    ),
    "mask_rcnn": Weights(
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "bf2d0c1e",
        f"{_TORCHVISION}maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "torchvision's Mask R-CNN; silhouettes of photographs that come without a mask",
    ),
    "alexnet": Weights(
        "alexnet-owt-7be5be79.pth",
        "7be5be79",
        f"{_TORCHVISION}alexnet-owt-7be5be79.pth",
        "torchvision's AlexNet; LPIPS-Alex",
    ),
    "squeezenet": Weights(
        "squeezenet1_1-b8a52dc0.pth",
        "b8a52dc0",
        f"{_TORCHVISION}squeezenet1_1-b8a52dc0.pth",
        "torchvision's SqueezeNet 1.1; FID and KID that follow a training, in 5 MB",
    ),
    "squeezenet_caffe": Weights(
        "squeezenet1_1_caffe_fp16.pth",
        "c5977a78ec771d3f",
        "https://github.com/nihui/ncnn-assets (models/squeezenet_v1.1.bin, converted)",
        "the authors' own weights of SqueezeNet 1.1 in half precision; a stand-in for squeezenet, with other numbers",
    ),
    "mit_b5": Weights(
        "mit_b5.pth",
        "",
        "https://github.com/NVlabs/SegFormer (ImageNet-1K weights)",
        "SegFormer's backbone trained on ImageNet; encoders of bootstrapped radiance-field inversion start from it",
    ),
}

GO_WITHOUT = f"choose weights={RANDOM!r} where you accept that the numbers mean nothing"


def find(name: str, folder: str | Path | None = None, *, go_without: str = GO_WITHOUT) -> Path:
    """The file of the weights `name`, its hash checked.

    Looked for, in this order, in `folder`, in the folders of $INVKIT_WEIGHTS (in each also one level down), and in the
    cache of torch hub, where torchvision, pytorch-fid and lpips put their downloads.

    Args:
        go_without: what somebody does who has not got it, for the message.

    Raises:
        FileNotFoundError: it is in none of them; says where to get it and where to put it.
        ValueError: the name is unknown, or the file found is damaged.
    """
    if name not in WEIGHTS:
        raise ValueError(f"unknown weights {name!r}; known are {', '.join(WEIGHTS)} and {RANDOM}")
    weights, places = WEIGHTS[name], _places(folder)
    for place in places:
        for path in (place / weights.file, *sorted(place.glob(f"*/{weights.file}"))):
            if path.is_file():
                _check(path, weights)
                return path
    looked = ", ".join(map(str, places))
    raise FileNotFoundError(
        f"weights {name!r}: no file {weights.file} ({weights.purpose}) in {looked}. Get it from {weights.url} "
        f"and put it into {places[0]}, or name its folder in ${FOLDERS}; nothing is downloaded on its own. "
        f"To run without it, {go_without}."
    )


def load(name: str, folder: str | Path | None = None) -> dict[str, Tensor]:
    """The tensors of the weights `name`, on the CPU; see `find` for where they are looked for and the errors."""
    return torch.load(find(name, folder), map_location="cpu", weights_only=True)


def fill(module: nn.Module, name: str, stored: Mapping[str, Tensor], key: Callable[[str], str] = str) -> None:
    """Put the tensors of the weights `name` into `module`, which may still be on the meta device.

    Args:
        stored: what `load` gave; entries that `module` does not have are left out.
        key: the name in the file of an entry of the module.

    Raises:
        ValueError: the file lacks an entry of `module`, or has it in another shape.
    """
    chosen = {}
    for own, tensor in module.state_dict().items():
        # Files from before PyTorch 0.4.1 have no count of batches; it is not used for measuring.
        if own.endswith("num_batches_tracked"):
            chosen[own] = torch.zeros((), dtype=torch.long)
            continue
        found = stored.get(key(own))
        if found is None or found.shape != tensor.shape:
            has = "no entry" if found is None else f"shape {tuple(found.shape)} for"
            raise ValueError(
                f"weights {name!r} ({WEIGHTS[name].file}): {has} {key(own)!r}, needed in shape {tuple(tensor.shape)}"
            )
        chosen[own] = found.float()
    module.load_state_dict(chosen, assign=True)


def draw(module: nn.Module, seed: int = 0) -> None:
    """Fill `module`, which may still be on the meta device, with weights that depend on `seed` alone.

    Convolutions are He-normal in their inputs without bias, normalizations the identity, so that activations keep
    their size through the depth.
    """
    module.to_empty(device="cpu")
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                spread = math.sqrt(2 / part.weight[0].numel())
                part.weight.copy_(torch.randn(part.weight.shape, generator=rng) * spread)
                if part.bias is not None:
                    part.bias.zero_()
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()


def _places(folder: str | Path | None) -> list[Path]:
    named = [entry for entry in os.environ.get(FOLDERS, "").split(os.pathsep) if entry]
    given = [] if folder is None else [folder]
    return [Path(entry) for entry in (*given, *named, Path(torch.hub.get_dir()) / "checkpoints")]


def _check(path: Path, weights: Weights) -> None:
    stat = path.stat()
    found = _sha256(path, stat.st_size, stat.st_mtime_ns)
    if not found.startswith(weights.sha256):
        raise ValueError(
            f"{path} is damaged: its SHA-256 begins with {found[: len(weights.sha256)]}, not {weights.sha256} "
            f"({stat.st_size} bytes). Delete it and get it again from {weights.url}"
        )


@lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Hash of a file; size and time of change tell a new file of the same name apart."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
