"""What a loss compares by: functions of two feature maps -> one number per image."""

from veridical.distances.base import Distance
from veridical.distances.contextual import Contextual
from veridical.distances.dists import dists_distance, dists_needs
from veridical.distances.feature_distance import LPIPS_NETWORKS, FeatureDistance, Seen, lpips_distance, lpips_needs
from veridical.distances.gram import Gram
from veridical.distances.lpips import LPIPS, UnitL2
from veridical.distances.pointwise import L1, L2, Charbonnier
from veridical.distances.wasserstein import Wasserstein

DISTANCES: dict[str, type[Distance]] = {
    "l1": L1,
    "l2": L2,
    "charbonnier": Charbonnier,
    "unit-l2": UnitL2,
    "wasserstein": Wasserstein,
    "contextual": Contextual,
    "gram": Gram,
}

__all__ = [
    "DISTANCES",
    "L1",
    "L2",
    "LPIPS",
    "LPIPS_NETWORKS",
    "Charbonnier",
    "Contextual",
    "Distance",
    "FeatureDistance",
    "Gram",
    "Seen",
    "UnitL2",
    "Wasserstein",
    "dists_distance",
    "dists_needs",
    "lpips_distance",
    "lpips_needs",
]
