"""Rotations, cameras, and moves of pictures with their cameras."""
