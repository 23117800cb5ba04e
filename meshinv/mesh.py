"""Textured meshes, and the UV maps they are drawn from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from invkit.batch import Batch
from meshinv.template import Template, mirror_maps


@dataclass(frozen=True)
class UVMaps(Batch):
    """What the generator makes and the discriminators see.

    Args:
        texture: colors over the UV square, [-1, 1]; v up, so that row 0 is the north pole.
        displacement: offsets along normal, tangent and bitangent, object units.
    """

    texture: Float[Tensor, "B 3 T_h T_w"]
    displacement: Float[Tensor, "B 3 H W"]

    def mirror(self) -> "UVMaps":
        """The maps of the object mirrored in x; exact where the displacement is symmetric."""
        return UVMaps(mirror_maps(self.texture), mirror_maps(self.displacement))

    def mesh(self, template: Template) -> "TexturedMesh":
        """The meshes these maps describe."""
        return TexturedMesh(template.deform(self.displacement), self.texture, template)


@dataclass(frozen=True, eq=False)
class Topology:
    """Faces and UVs of meshes that are no UV spheres: read from a file, say. Can be rendered, not deformed.

    Args:
        faces: vertex indices, counter-clockwise seen from outside.
        uvs: entries of the UV table, u right and v up; 0 and 1 are the centers of the texture's outermost texels.
        face_uvs: UV entries of the corners of each face.
    """

    faces: Int[Tensor, "F 3"]
    uvs: Float[Tensor, "N 2"]
    face_uvs: Int[Tensor, "F 3"]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Topology":
        if self.uvs.device == torch.device(device) and self.uvs.dtype == dtype:
            return self
        return Topology(self.faces.to(device), self.uvs.to(device, dtype), self.face_uvs.to(device))

    def pad_texture(self, texture: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The texture itself: there is no seam to look across."""
        return texture

    def texture_uvs(self, width: int) -> Float[Tensor, "N 2"]:
        """The UV table, whatever the width of the texture."""
        return self.uvs


@dataclass(frozen=True)
class TexturedMesh(Batch):
    """Meshes of one topology, each with its own vertices and texture.

    Args:
        vertices: object frame; x = 0 is the symmetry plane, +y points from head to tail, +z up.
        texture: colors over the UV square, [-1, 1], without padding.
        template: faces and UVs; it follows the vertices to their device and precision.
    """

    vertices: Float[Tensor, "B V 3"]
    texture: Float[Tensor, "B 3 T_h T_w"]
    template: Template | Topology

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", self.template.to(self.vertices.device, self.vertices.dtype))

    def corners(self) -> Float[Tensor, "B F 3 3"]:
        """Positions of the three corners of every face."""
        return face_corners(self.vertices, self.template)

    def normals(self) -> Float[Tensor, "B F 3"]:
        """Unit normals of the faces, outwards; 0 for a face without area."""
        first, second, third = self.corners().unbind(2)
        return torch.nn.functional.normalize(torch.linalg.cross(second - first, third - first), dim=2, eps=1e-12)

    def centered(self) -> "TexturedMesh":
        """The meshes moved so that the mean of the vertices is the origin (where novel views look at)."""
        return replace(self, vertices=self.vertices - self.vertices.mean(1, keepdim=True))

    def outermost(self) -> Float[Tensor, "B V 3"]:
        """Points beyond which there is nothing: the vertices."""
        return self.vertices

    def with_details(self, details: Mapping[str, Tensor]) -> "TexturedMesh":
        """The meshes with the textures that were found for them after the search: `details["texture"]`, of any size.

        Raises:
            ValueError: there are not as many textures as meshes, or something else is among the details.
        """
        if unknown := set(details) - {"texture"}:
            raise ValueError(f"a mesh can be given a texture; it was given {', '.join(sorted(unknown))}")
        if "texture" not in details:
            return self
        texture = details["texture"].to(self.texture)
        if len(texture) != len(self):
            raise ValueError(f"{len(texture)} textures for {len(self)} meshes")
        return replace(self, texture=texture)


def face_corners(values: Shaped[Tensor, "B V C"], template: Template | Topology) -> Shaped[Tensor, "B F 3 C"]:
    """What the vertices carry, gathered at the three corners of every face."""
    return values.index_select(1, template.faces.flatten()).unflatten(1, (-1, 3))


def flatness(mesh: TexturedMesh) -> Float[Tensor, "B"]:
    """Sum over the edges of (1 - cos)^2, the angle being that between the normals of the two faces (L_flat)."""
    normals = mesh.normals()
    first, second = mesh.template.edge_faces.unbind(1)
    cosine = (normals.index_select(1, first) * normals.index_select(1, second)).sum(2)
    return (1 - cosine).square().sum(1)
