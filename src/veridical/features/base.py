"""The contract of everything that a loss can look through."""

from collections.abc import Hashable, Iterable, Sequence

from torch import Tensor, nn

from veridical.core.catalog import unknown
from veridical.core.errors import BadOption

Maps = dict[str, Tensor]
"""Feature maps by tap name, each (N, C, h, w)."""


class Features(nn.Module):
    """Image -> feature maps at named taps.

    Nothing in here is trained: subclasses keep their weights as buffers outside the state_dict, so that no optimiser,
    checkpoint or `train()` call touches them, while `.to()` moves them.

    Attributes:
        taps: the names of the maps that `forward` returns.
        identity: equal for two objects that compute the same maps, so that a sum of losses can share one pass.
        available: every tap name there is, in the order of computation.
        random: whether `draw` gives other weights each time in training.
        pass_px: how many pixels to look at together on a CPU: more do not fit in its caches, and are slower as well as
            larger. One image of 256 x 256, or several where the maps are small.
    """

    taps: tuple[str, ...]
    identity: Hashable
    available: tuple[str, ...]
    random: bool = False
    pass_px: int = 256 * 256
    weight_hashes: dict[str, str]

    def __init__(self, *, taps: Iterable[str], available: Sequence[str], identity: Hashable) -> None:
        super().__init__()
        self.available = tuple(available)
        self.identity = identity
        self.weight_hashes = {}
        self.taps = ()
        self.add_taps(taps)

    def add_taps(self, taps: Iterable[str]) -> None:
        """Also return the maps at `taps`. An unknown tap is an error that suggests the nearest."""
        taps = list(taps)
        if not taps and not self.taps:
            raise BadOption(f"{type(self).__name__} needs at least one tap of: {', '.join(self.available)}.")
        for tap in taps:
            if tap not in self.available:
                raise unknown(f"tap of {type(self).__name__}", tap, self.available)
        self.taps = tuple(t for t in self.available if t in {*self.taps, *taps})

    def take_taps(self, taps: Iterable[str]) -> None:
        """Return the maps at `taps` alone. An unknown tap is an error that suggests the nearest."""
        self.taps = ()
        self.add_taps(taps)

    @property
    def min_size(self) -> int:
        """The least height and width, in px, that leaves something at the deepest tap."""
        return 1

    def draw(self) -> tuple[Tensor, ...]:
        """The weights to use for one comparison: prediction and target must see the same ones."""
        return ()

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:
        """(N, C, H, W), nominal [0, 1] -> the maps at `taps`, with the weights of one `draw`."""
        raise NotImplementedError("a subclass of Features defines forward")
