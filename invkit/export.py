"""Reconstructions as files that anybody can open: models (GLB, PLY), animations (GIF) and films (MP4).

A viewer's y axis is up where the object frame's z is: (x, y, z) becomes (x, z, -y), which is a rotation.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from invkit.evaluation import viewpoints
from invkit.geometry.camera import Camera
from invkit.images import to_uint8
from invkit.protocols import Renderer, Scene
from invkit.runtime.files import written_aside

_COLOR = "_COLOR"
"""What trimesh calls an attribute of our own until `_with_colors` calls it by the format's name."""


def y_up(vectors: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """Points or directions of the object frame in a file's."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([x, z, -y], dim=-1)


def write_glb(path: Path, model: trimesh.Trimesh) -> None:
    """One binary glTF file, with texture or vertex colors in it; whole or not there."""
    colors = model.visual.kind == "vertex"
    scene = trimesh.Scene(_with_linear_colors(model) if colors else model)
    content = trimesh.exchange.gltf.export_glb(
        scene, include_normals=True, tree_postprocessor=_with_colors if colors else None
    )
    with written_aside(path) as aside:
        aside.write_bytes(content)


def write_ply(path: Path, model: trimesh.Trimesh) -> None:
    """A binary PLY with normals and vertex colors; whole or not there. Textures have no place in it."""
    with written_aside(path) as aside:
        aside.write_bytes(trimesh.exchange.ply.export_ply(model, vertex_normal=True))


def turntable(scene: Scene, camera: Camera, renderer: Renderer[Scene], count: int = 36) -> UInt8[Tensor, "K H W 3"]:
    """A batch of one turned about its up axis in `count` equal steps, from the camera's view on, over white.

    Raises:
        ValueError: the batch does not hold exactly one object.
    """
    if len(scene) != 1:
        raise ValueError(f"a turntable shows one object; this batch has {len(scene)}")
    centered = scene.centered()
    cameras = viewpoints.orbit(camera, torch.arange(count) * (360 / count))
    frames = []
    with torch.no_grad():
        for i in range(count):
            frames.append(to_uint8(renderer(centered, cameras[i]).over(1.0)).cpu())
    return torch.cat(frames)


def write_gif(path: Path, frames: UInt8[Tensor, "K H W 3"], *, frames_per_second: float = 12.0) -> None:
    """An animation that repeats for ever; whole or not there."""
    pictures: Sequence[Image.Image] = [Image.fromarray(frame.numpy()) for frame in frames.cpu()]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / frames_per_second), loop=0
    )
    with written_aside(path) as aside:
        aside.write_bytes(buffer.getvalue())


def write_mp4(path: Path, frames: UInt8[Tensor, "K H W 3"], *, frames_per_second: float = 12.0) -> None:
    """A film in H.264, which every browser and slide program plays; whole or not there.

    Sides are stretched to even numbers, as the format wants them.

    Raises:
        ValueError: imageio-ffmpeg is not installed.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ValueError(f'films need imageio-ffmpeg ({error}): pip install -e ".[video]"') from error
    height, width = frames.shape[1:3]
    with written_aside(path) as aside:
        film = imageio_ffmpeg.write_frames(
            str(aside),
            (width, height),
            fps=frames_per_second,
            quality=8,
            macro_block_size=2,
            # The name written aside does not tell the format. The index goes first, so that it plays while it loads.
            output_params=["-f", "mp4", "-movflags", "+faststart"],
        )
        film.send(None)
        for frame in frames.cpu():
            film.send(frame.contiguous().numpy())
        film.close()


def _with_linear_colors(model: trimesh.Trimesh) -> trimesh.Trimesh:
    """The model without its colors, which are an attribute instead: linear ones, as glTF wants those of vertices.

    Of linear colors 8 bits would tell too few dark ones apart.
    """
    srgb = model.visual.vertex_colors / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear[:, 3] = srgb[:, 3]
    return trimesh.Trimesh(
        vertices=model.vertices,
        faces=model.faces,
        vertex_normals=model.vertex_normals,
        vertex_attributes={_COLOR: np.round(65535 * linear).astype(np.uint16)},
        process=False,
    )


def _with_colors(tree: dict[str, Any]) -> None:
    """That attribute becomes the vertices' color, on a surface that does not shine."""
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            accessor = primitive["attributes"].pop(_COLOR)
            tree["accessors"][accessor]["normalized"] = True
            primitive["attributes"]["COLOR_0"] = accessor
            primitive["material"] = 0
