"""Procedural data with known shapes, cameras and unseen views, in the layouts the real data sets are published in."""

from invkit.data.synthetic.bird_photos import write_birds
from invkit.data.synthetic.car_views import write_cars

__all__ = ["write_birds", "write_cars"]
