"""Renderers of textured meshes."""

from meshinv.renderers.reference import MeshRenderer

__all__ = ["MeshRenderer"]
