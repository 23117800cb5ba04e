"""Photographs one by one: the silhouette of what is in them, and a panel of what became of them."""
