"""Losses added up, with one pass through each network that several of them share."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from veridical.core.catalog import factor
from veridical.core.errors import BadOption, VeridicalError
from veridical.core.options import check_number
from veridical.distances import Seen
from veridical.features import Features
from veridical.losses.auto_weight import AutoWeight, FoundWeights, mean_gradient_norms
from veridical.losses.base import FeatureLoss, Loss


class WeightedSum(Loss):
    """Σ_i weight_i · loss_i.

    Terms that look through the same network (the same weights and the same input normalisation) share one pass per
    image: the network then returns the taps of all of them. The losses become parts of the sum; make new ones to use
    alone.

    An `AutoWeight` is found by `calibrate`, once, before the first step; until then the sum has no value.
    """

    def __init__(self, terms: Sequence[tuple[float | AutoWeight, Loss]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a sum of losses needs at least one term.")
        terms = [inner for weight, loss in terms for inner in _flat(weight, loss)]
        for weight, loss in terms:
            if not isinstance(weight, AutoWeight):
                check_number(f"the weight of {loss.label or type(loss).__name__}", weight)
        if isinstance(terms[0][0], AutoWeight):
            raise BadOption(
                "the first term's weight is 'auto', but the others are measured by it: give it a number, as in "
                "'l1 + auto*lpips'."
            )
        self._given = [weight if isinstance(weight, AutoWeight) else float(weight) for weight, _ in terms]
        wanted = {k: weight for k, weight in enumerate(self._given) if isinstance(weight, AutoWeight)}
        self.automatic = FoundWeights(wanted) if wanted else None
        self.losses = nn.ModuleList(loss for _, loss in terms)
        self._labels = _distinct([loss.label or type(loss).__name__ for _, loss in terms])
        self.label = self._sum_of(self._given)
        self.optimises = tuple(sorted({metric for _, loss in terms for metric in loss.optimises}))
        self.reference = any(loss.reference for _, loss in terms)
        self.by_image = any(loss.by_image for _, loss in terms)
        self.pass_px = min((loss.pass_px for _, loss in terms if loss.by_image), default=self.pass_px)
        self._share_networks()

    def _share_networks(self) -> None:
        shared: dict[Hashable, Features] = {}
        for loss in self.losses:
            if _is_plain(loss):
                features = shared.setdefault(loss.distance.features.identity, loss.distance.features)
                features.add_taps(loss.distance.features.taps)
                loss.distance.features = features

    def _sum_of(self, weights: Sequence[float | AutoWeight]) -> str:
        numbers = [weight.term if isinstance(weight, AutoWeight) else weight for weight in weights]
        parts = [loss.label or type(loss).__name__ for loss in self._terms()]
        return " + ".join(factor(number) + part for number, part in zip(numbers, parts, strict=True))

    @property
    def weights(self) -> list[float]:
        """Errors: VeridicalError while an automatic one is not found."""
        if self.automatic is None:
            return [weight for weight in self._given if isinstance(weight, float)]
        if not self.automatic.complete:
            raise VeridicalError(
                f"the loss {self.label!r} has a weight that is not found yet. Before the first step, call "
                "loss.calibrate([(model(degraded), sharp)]) with one or more batches."
            )
        found = self.automatic.found
        return [weight if isinstance(weight, float) else found[k] for k, weight in enumerate(self._given)]

    @property
    def parts(self) -> list[Loss]:
        return self._terms()

    @property
    def fixed_label(self) -> str:
        complete = self.automatic is None or self.automatic.complete
        return self._sum_of(self.weights) if complete else self.label

    @property
    def batches_to_calibrate(self) -> int:  # type: ignore[override]
        if self.automatic is None or self.automatic.complete:
            return 0
        return max(weight.batches for weight in self.automatic.wanted.values())

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        if self.automatic is None:
            return {}
        places = [0, *self.automatic.wanted]
        terms = {self.labels[place]: self._terms()[place] for place in places}
        first, *others = mean_gradient_norms(terms, batches)
        for (place, weight), own in zip(self.automatic.wanted.items(), others, strict=True):
            exact = weight.ratio * abs(self._given[0]) * first / own  # type: ignore[arg-type] # the first is a number
            self.automatic.found[place] = float(f"{exact:.4g}")  # what is printed is then what is used
        return {f"{self.automatic.wanted[k]}*{self.labels[k]}": found for k, found in self.automatic.found.items()}

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


def _flat(weight: float | AutoWeight, loss: Loss) -> list[tuple[float | AutoWeight, Loss]]:
    """A sum inside a sum gives its terms, so that they too share networks; not where one weight is found for all."""
    if isinstance(loss, WeightedSum) and not isinstance(weight, AutoWeight):
        return [(weight * w, inner) for w, inner in zip(loss.weights, loss._terms(), strict=True)]
    return [(weight, loss)]


def _distinct(labels: list[str]) -> list[str]:
    """Number the labels that occur more than once."""
    counts, seen, out = Counter(labels), Counter[str](), []
    for label in labels:
        seen[label] += 1
        out.append(f"{label} #{seen[label]}" if counts[label] > 1 else label)
    return out
