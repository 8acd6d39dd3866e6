"""Losses added up, with one pass through each network that several of them share."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from veridical.core.catalog import factor
from veridical.core.options import check_number
from veridical.distances import Seen
from veridical.features import Features
from veridical.losses.base import FeatureLoss, Loss


class WeightedSum(Loss):
    """Σ_i weight_i · loss_i.

    Terms that look through the same network (the same weights and the same input normalisation) share one pass per
    image: the network then returns the taps of all of them. The losses become parts of the sum; make new ones to use
    alone.
    """

    def __init__(self, terms: Sequence[tuple[float, Loss]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a sum of losses needs at least one term.")
        terms = [inner for weight, loss in terms for inner in _flat(weight, loss)]
        for weight, loss in terms:
            check_number(f"the weight of {loss.label or type(loss).__name__}", weight)
        self.weights = [float(weight) for weight, _ in terms]
        self.losses = nn.ModuleList(loss for _, loss in terms)
        self._labels = _distinct([loss.label or type(loss).__name__ for _, loss in terms])
        self.label = " + ".join(factor(weight) + (loss.label or type(loss).__name__) for weight, loss in terms)
        self.optimises = tuple(sorted({metric for _, loss in terms for metric in loss.optimises}))
        self.reference = any(loss.reference for _, loss in terms)
        self.by_image = any(loss.by_image for _, loss in terms)
        self._share_networks()

    def _share_networks(self) -> None:
        shared: dict[Hashable, Features] = {}
        for loss in self.losses:
            if _is_plain(loss):
                features = shared.setdefault(loss.distance.features.identity, loss.distance.features)
                features.add_taps(loss.distance.features.taps)
                loss.distance.features = features

    @property
    def networks(self) -> dict[Hashable, Features]:
        """What the terms look through, once each."""
        return {f.identity: f for f in (m.distance.features for m in self.losses if _is_plain(m))}

    @property
    def min_size(self) -> int:  # type: ignore[override]
        return max(loss.min_size for loss in self._terms())

    @property
    def random(self) -> bool:  # type: ignore[override]
        return any(loss.random for loss in self._terms())

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return any(loss.coupled for loss in self._terms())

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return any(loss.learns for loss in self._terms())

    def learn(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {
            f"{label} {name}": value
            for label, loss in zip(self.labels, self._terms(), strict=True)
            if loss.learns
            for name, value in loss.learn(prediction, target).items()
        }

    @property
    def weight_hashes(self) -> dict[str, str]:
        hashes: dict[str, str] = {}
        for loss in self._terms():
            for name, value in loss.weight_hashes.items():
                same = hashes.get(name, value) == value
                hashes[name if same else f"{name} ({value[:8]})"] = value  # one network from two files
        return hashes

    @property
    def labels(self) -> list[str]:
        return self._labels

    def _terms(self) -> list[Loss]:
        return [loss for loss in self.losses if isinstance(loss, Loss)]

    def prepare_target(self, target: Tensor) -> list[Any]:
        draws = {key: network.draw() for key, network in self.networks.items()}
        maps = {key: network(target, draws[key]) for key, network in self.networks.items()}
        data: list[Any] = []
        for loss in self._terms():
            if _is_plain(loss):
                key = loss.distance.features.identity
                data.append(Seen(draws[key], loss.distance.prepare_maps(maps[key])))
            else:
                data.append(loss.prepare_target(target))
        return data

    def compare_terms(self, prediction: Tensor, data: list[Any]) -> list[Tensor]:
        maps = {}
        values = []
        for weight, loss, seen in zip(self.weights, self._terms(), data, strict=True):
            if _is_plain(loss):
                features = loss.distance.features
                if features.identity not in maps:
                    maps[features.identity] = features(prediction, seen.draw)
                values.append(weight * loss.distance.compare_maps(maps[features.identity], seen.prepared))
            else:
                values.append(weight * loss.compare(prediction, seen))
        return values

    def compare(self, prediction: Tensor, data: list[Any]) -> Tensor:
        return torch.stack(self.compare_terms(prediction, data)).sum(0)


def _is_plain(loss: nn.Module) -> TypeGuard[FeatureLoss]:
    """Whether it is features x distances and nothing more: a subclass may compare in a way of its own."""
    return type(loss) is FeatureLoss


def _flat(weight: float, loss: Loss) -> list[tuple[float, Loss]]:
    """A sum inside a sum gives its terms, so that they too share networks."""
    if isinstance(loss, WeightedSum):
        return [(weight * w, inner) for w, inner in zip(loss.weights, loss._terms(), strict=True)]
    return [(weight, loss)]


def _distinct(labels: list[str]) -> list[str]:
    """Number the labels that occur more than once."""
    counts, seen, out = Counter(labels), Counter[str](), []
    for label in labels:
        seen[label] += 1
        out.append(f"{label} #{seen[label]}" if counts[label] > 1 else label)
    return out
