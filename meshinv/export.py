"""Textured meshes as models that any viewer shows; OBJ with its material and picture; transfers of textures.

A viewer does not read textures as the renderer does. It takes texel centers at half integers where the renderer aligns
the outermost texels with the borders of the UV square, and its y axis is up where the object frame's z is. So a model
has the padded texture and UVs that make a viewer look up the same colors, and turned vertices: (x, y, z) becomes
(x, z, -y), which is a rotation. The head of a bird (-y) then looks along +z, as glTF wants the front of things.
"""

from dataclasses import replace
from pathlib import Path

import torch
import trimesh
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from invkit.export import y_up
from invkit.images import to_uint8
from invkit.protocols import Renderer
from invkit.runtime.files import written_aside
from invkit.types import Estimate
from meshinv.mesh import TexturedMesh
from meshinv.template import Template


def models(mesh: TexturedMesh) -> list[trimesh.Trimesh]:
    """Each mesh of the batch for trimesh: y up, one vertex for each entry of the UV table, v up as trimesh has it."""
    template = mesh.template.to("cpu", torch.float64)
    owner = _vertex_of_uv(template)
    uvs = _viewer_uvs(template, *mesh.texture.shape[2:]).numpy()
    on_cpu = mesh.detach().to("cpu")
    positions = y_up(on_cpu.vertices.double())[:, owner].numpy()
    normals = y_up(_vertex_normals(on_cpu))[:, owner].numpy()
    pictures = to_uint8(template.pad_texture(on_cpu.texture.float())).numpy()
    return [
        trimesh.Trimesh(
            vertices=positions[i],
            faces=template.face_uvs.numpy(),
            vertex_normals=normals[i],
            visual=TextureVisuals(uv=uvs, material=_matte(Image.fromarray(pictures[i]))),
            process=False,
        )
        for i in range(len(mesh))
    ]


def model(mesh: TexturedMesh, name: str) -> trimesh.Trimesh:
    """The only mesh of a batch as in `models`; every one can be modeled, so its name is told to nobody."""
    (only,) = models(mesh)
    return only


def with_texture_of(shapes: TexturedMesh, textures: TexturedMesh) -> TexturedMesh:
    """Each shape with the other's texture (MeshInversion, section 4.3).

    All textures are maps over one sphere, on which a beak is always at the same place, so nothing is resampled.

    Raises:
        ValueError: the meshes are not deformations of the same template, or not equally many.
    """
    if len(shapes) != len(textures) or not torch.equal(shapes.template.face_uvs, textures.template.face_uvs):
        raise ValueError("textures can be exchanged between equally many meshes of one template")
    return replace(shapes, texture=textures.texture)


def transfers(estimate: Estimate, renderer: Renderer[TexturedMesh]) -> Estimate:
    """All pairs of shape and texture of a batch: shape by shape, and for each of them texture by texture.

    Each pair is seen from the camera of its shape.
    """
    count = len(estimate)
    shape = torch.arange(count).repeat_interleave(count)
    texture = torch.arange(count).repeat(count)
    scene = with_texture_of(estimate.scene[shape], estimate.scene[texture])
    own = estimate[shape]
    return replace(own, scene=scene, image=renderer(scene, own.camera))


def write_obj(path: Path, model: trimesh.Trimesh) -> None:
    """`path` (.obj) with a .mtl and a .png of the same name beside it; the OBJ is written last, once these are."""
    plain = model.copy()
    plain.visual = TextureVisuals(
        uv=model.visual.uv, material=SimpleMaterial(image=model.visual.material.baseColorTexture, name=path.stem)
    )
    text, files = trimesh.exchange.obj.export_obj(
        plain, include_normals=True, return_texture=True, mtl_name=f"{path.stem}.mtl", header=None
    )
    for name, content in files.items():
        with written_aside(path.with_name(name)) as aside:
            aside.write_bytes(content)
    with written_aside(path) as aside:
        aside.write_text(text)


def _matte(picture: Image.Image) -> PBRMaterial:
    return PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0, doubleSided=False)


def _vertex_of_uv(template: Template) -> Tensor:
    owner = torch.empty(len(template.uvs), dtype=torch.long)
    owner[template.face_uvs.flatten()] = template.faces.flatten()
    return owner


def _viewer_uvs(template: Template, height: int, width: int) -> Float[Tensor, "N 2"]:
    """Where a viewer (texel centers at half integers) finds in the padded texture what the renderer reads in it."""
    padded = width + (2 if template.symmetric else 1)
    u, v = template.texture_uvs(width).unbind(1)
    return torch.stack([(u * (padded - 1) + 0.5) / padded, (v * (height - 1) + 0.5) / height], dim=1)


def _vertex_normals(mesh: TexturedMesh) -> Float[Tensor, "B V 3"]:
    """Means of the adjacent faces' normals, weighted by area; smooth across the seam of the UV square."""
    first, second, third = mesh.corners().double().unbind(2)
    weighted = torch.linalg.cross(second - first, third - first)
    total = torch.zeros_like(mesh.vertices, dtype=torch.float64)
    for corner in mesh.template.faces.T:
        total.index_add_(1, corner, weighted)
    return torch.nn.functional.normalize(total, dim=2, eps=1e-12)
