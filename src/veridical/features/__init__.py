"""What a loss looks through: frozen networks, small random networks, or the pixels themselves."""

from veridical.features.base import Features, Maps
from veridical.features.networks import FrozenNetwork
from veridical.features.pixels import Gradients, Laplacian, Pixels
from veridical.features.stochastic import StochasticNetwork

__all__ = [
    "Features",
    "FrozenNetwork",
    "Gradients",
    "Laplacian",
    "Maps",
    "Pixels",
    "StochasticNetwork",
]
