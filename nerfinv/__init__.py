"""Bootstrapped radiance-field inversion (CVPR 2023): tri-plane SDF generator, encoder, PnP, hybrid refinement.

The package is laid out beside meshinv and shares invkit with it; no part of the method is here yet.
"""
