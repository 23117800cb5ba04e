"""Measurements of pictures, shapes and cameras, mergeable across processes."""
