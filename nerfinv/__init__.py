"""Bootstrapped radiance-field inversion (CVPR 2023): tri-plane SDF generator, encoder, PnP, hybrid inversion."""
