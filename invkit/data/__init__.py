"""Photographs, silhouettes and cameras as items of data sets: published layouts, own folders, procedural scenes."""
