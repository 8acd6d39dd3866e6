"""What a loss looks through: frozen networks, small random networks, or the pixels themselves."""

from veridical.features.adapter import AdaptedFeatures, Adapter
from veridical.features.base import Features, Maps
from veridical.features.clip import CLIPNetwork
from veridical.features.mdf import MDFNetwork
from veridical.features.networks import FrozenNetwork
from veridical.features.pixels import Gradients, Laplacian, Pixels
from veridical.features.stochastic import StochasticNetwork

__all__ = [
    "AdaptedFeatures",
    "Adapter",
    "CLIPNetwork",
    "Features",
    "FrozenNetwork",
    "Gradients",
    "Laplacian",
    "MDFNetwork",
    "Maps",
    "Pixels",
    "StochasticNetwork",
]
