"""Numbers about generated images; needs no model and no run."""

from iet_agc.metrics.memorization import CUTS, distance_ratio, memorization_quantity
from iet_agc.metrics.neighbors import nearest

__all__ = ["CUTS", "distance_ratio", "memorization_quantity", "nearest"]
