"""Values that are NaN or infinite: noticed, traced to a term, a layer and photographs, and left out if so wished."""

import contextlib
import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from veridical.core.errors import NonFiniteLoss
from veridical.training.devices import Group, accelerators

# Steps left out one after the other: then something is wrong for good.
IN_A_ROW = 20
# Of how many steps left out a note names the photographs.
NAMED = 3

Batch = tuple[Tensor, Tensor]


class Traced(Protocol):
    """What is needed of a loss here."""

    def terms(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Fault:
    """The first step with a value that is not finite, and which values those were.

    terms, learned: the labels of those; none of both: the sum of the terms (`of_sum`), or else the gradients.
    labels: of all terms. own: whether this process had seen it, rather than another.
    """

    step: int
    labels: tuple[str, ...]
    terms: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()
    of_sum: bool = False
    own: bool = True

    @property
    def of_gradients(self) -> bool:
        return not (self.terms or self.learned or self.of_sum)

    def said(self, guilty: Sequence[str] = ()) -> str:
        """In words. guilty: the terms whose own gradient is not finite, where that is what is wrong."""
        if self.terms:
            return f"the term {', '.join(self.terms)} became NaN or infinite"
        if self.learned:
            return f"what the loss learns became NaN or infinite: {', '.join(self.learned)}"
        if self.of_sum:
            return f"the sum of the terms {', '.join(self.labels)} became infinite, though each is finite"
        guilty = guilty or (self.labels if len(self.labels) == 1 else ())
        if guilty:
            return f"the gradient of the term {', '.join(guilty)} became NaN or infinite"
        return f"the gradients became NaN or infinite, of one of the terms {', '.join(self.labels)}"


class Sentinel:
    """Remembers, on the device, the first step at which each value was not finite."""

    _NEVER = 2**62

    def __init__(self, members: Group | None = None) -> None:
        self.members = members or Group()
        self._labels: list[str] = []
        self._learned: list[str] = []
        self._first: Tensor | None = None

    def see(
        self,
        step: int,
        total: Tensor,
        terms: Mapping[str, Tensor],
        gradients: Tensor | None,
        learned: Mapping[str, Tensor],
    ) -> None:
        self._labels, self._learned = list(terms), list(learned)
        gradients = total if gradients is None else gradients
        values = torch.stack([v.detach().float() for v in (*terms.values(), *learned.values(), total, gradients)])
        bad = torch.where(torch.isfinite(values), self._NEVER, step)
        self._first = bad if self._first is None else torch.minimum(self._first, bad)

    def look(self, *, stop: bool = False) -> tuple[Fault | None, bool]:
        """What was seen since the last fault in any of the processes, and whether one of them is asked to stop."""
        assert self._first is not None
        first = self._first
        if self.members.size > 1:  # the wish to stop travels with the rest
            first = self.members.least(torch.cat([first, first.new_tensor([0 if stop else self._NEVER])]))
            *found, wish = first.tolist()
            stop = wish != self._NEVER
        else:
            found = first.tolist()
        step = min(found)
        if step == self._NEVER:
            return None, stop
        *values, total, _ = found
        count = len(self._labels)
        fault = Fault(
            step,
            tuple(self._labels),
            terms=tuple(label for label, at in zip(self._labels, values[:count], strict=True) if at == step),
            learned=tuple(label for label, at in zip(self._learned, values[count:], strict=True) if at == step),
            of_sum=total == step,
            own=bool((self._first == step).any()),
        )
        self._first = None
        return fault, stop


@dataclass(frozen=True)
class Finding:
    """What one process knows of a fault. certain: 3 when its samples are at fault, 2 when its replay shows where it
    began, 1 when it had seen it. terms: those whose gradient is not finite. detail: whole sentences."""

    certain: int
    detail: str
    terms: list[str] = field(default_factory=list)


class Inquiry:
    """Looks closer at a step that came to something not finite, by doing its forward pass once more.

    Args:   model: as trained, without a wrapper. counters: put back what a random loss draws by, to the step's own.
            names: the photographs of this process's share of a step. again: that share, made once more.
            autocast: as in the step.
    """

    def __init__(
        self,
        members: Group,
        model: nn.Module,
        loss: Traced,
        *,
        counters: "Counters",
        names: Callable[[int], list[str]],
        again: Callable[[int], Batch],
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.members, self.model, self.loss, self.counters = members, model, loss, counters
        self.names, self.again, self.autocast = names, again, autocast

    def report(self, fault: Fault, parts: Sequence[Batch], step: int) -> tuple[str, str]:
        """What happened, and more of it: the same two texts in every process.

        Args: parts: the share of this process in `step`, on the device, as it is worked through; its weights must still
              be those of that step.
        """
        mine = self._find(fault, parts, step)
        findings = [Finding(**json.loads(text)) for text in self.members.texts(json.dumps(asdict(mine)))]
        best = max(range(len(findings)), key=lambda rank: findings[rank].certain)
        where = f" (in process {best} of {len(findings)})" if len(findings) > 1 else ""
        return f"{fault.said(findings[best].terms)} at step {fault.step}", f"{findings[best].detail}{where}."

    def _find(self, fault: Fault, parts: Sequence[Batch], step: int) -> Finding:
        names = self.names(fault.step)
        degraded, sharp = self.again(fault.step)
        broken = [
            not (torch.isfinite(a).all() and torch.isfinite(b).all()) for a, b in zip(degraded, sharp, strict=True)
        ]
        if any(broken):
            listed = _listed(names, broken)
            return Finding(3, f"The input itself is not finite: mend or remove {listed}")
        if fault.step != step:
            return Finding(int(fault.own), f"The batch was of {_listed(names)}; the look at step {step} came too late "
                           "to tell in which layer it began")  # fmt: skip
        with self._undisturbed():
            self.counters.back()
            for number, (degraded, sharp) in enumerate(parts):
                own = names[number * len(degraded) : (number + 1) * len(degraded)]
                layer, broken, prediction = self._first_layer(degraded)
                if layer:
                    listed = _listed(own, broken)
                    return Finding(
                        2, f"The first layer whose output is not finite is {layer}, at the image of {listed}"
                    )
                if fault.terms and any(broken := self._broken(prediction, sharp)):
                    return Finding(2, f"It began at the image of {_listed(own, broken)}")
                if fault.of_gradients and (guilty := self._guilty(prediction, sharp)):
                    return Finding(2, f"The batch was of {_listed(own)}", guilty)
        batch = f"The batch was of {_listed(names)}"
        if fault.of_gradients and (weights := self._last_weights()):
            return Finding(int(fault.own), f"{batch}; no layer's output is at fault, and on the way back the first "
                           f"gradient that is not finite is that of {weights}")  # fmt: skip
        return Finding(int(fault.own), batch)

    @torch.no_grad()
    def _first_layer(self, degraded: Tensor) -> tuple[str, list[bool], Tensor]:
        """The first module, in the order of their work, whose output is not finite, or "", and for which images; and
        the prediction."""
        found: list[tuple[str, list[bool]]] = []

        def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def look(module: nn.Module, inputs: Any, output: Any) -> None:
                del inputs
                broken = [each for each in _tensors(output) if not torch.isfinite(each).all()]
                if found or not broken:
                    return
                by_image = len(broken[0]) == len(degraded) if broken[0].ndim else False
                images = [not torch.isfinite(one).all() for one in broken[0]] if by_image else [True] * len(degraded)
                found.append((f"{name or 'the model itself'} ({type(module).__name__})", images))

            return look

        hooks = [module.register_forward_hook(watch(name)) for name, module in self.model.named_modules()]
        try:
            with self.autocast():
                prediction = self.model(degraded)
        finally:
            for hook in hooks:
                hook.remove()
        return *(found[0] if found else ("", [])), prediction

    @torch.no_grad()
    def _broken(self, prediction: Tensor, sharp: Tensor) -> list[bool]:
        """For each image, whether a term of it alone is not finite."""
        found = []
        for one, truth in zip(prediction.split(1), sharp.split(1), strict=True):
            self.counters.back()
            with self.autocast():
                terms = self.loss.terms(one, truth)
            found.append(not all(torch.isfinite(term) for term in terms.values()))
        return found

    def _guilty(self, prediction: Tensor, sharp: Tensor) -> list[str]:
        """The terms whose own gradient with respect to the prediction is not finite."""
        prediction = prediction.detach().requires_grad_()
        guilty = []
        with self.autocast():
            terms = self.loss.terms(prediction, sharp)
        for label, term in terms.items():
            if not term.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(term, prediction, retain_graph=True, allow_unused=True)
            if gradient is not None and not torch.isfinite(gradient).all():
                guilty.append(label)
        return guilty

    def _last_weights(self) -> str:
        """Of the weights whose gradient is not finite, those nearest to the output, where the way back begins."""
        names = [
            name
            for name, weights in self.model.named_parameters()
            if weights.grad is not None and not torch.isfinite(weights.grad).all()
        ]
        return names[-1] if names else ""

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Leave everything as it is: batch norm's statistics, what dropout and random losses draw next."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        counters = self.counters.values()
        device = next(iter(self.model.parameters()), torch.zeros(())).device
        with torch.random.fork_rng(accelerators(device)):
            yield
        for buffer, before in buffers:
            buffer.copy_(before)
        self.counters.put(counters)


class Counters:
    """The numbers by which the random parts of a loss count their draws: whole numbers in its state. Put back, the next
    forward pass draws the same once more."""

    def __init__(self, loss: Any) -> None:
        self._tensors = [
            value
            for part in _parts(loss)
            if not part.learns
            for value in part.state_dict(keep_vars=True).values()
            if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point()
        ]
        self.mark()

    def values(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._tensors]

    def mark(self) -> None:
        """Remember where they stand, at the start of a step."""
        self._marked = self.values()

    def back(self) -> None:
        """Put them back to the mark."""
        self.put(self._marked)

    @torch.no_grad()
    def put(self, values: Iterable[Tensor]) -> None:
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.copy_(value)


class Undo:
    """What a step changes before its values are known to be finite: the model's buffers, such as batch norm's, and what
    the loss learns."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._learned = [(part, copy.deepcopy(part.state_dict())) for part in _parts(loss) if part.learns]

    @torch.no_grad()
    def back(self) -> None:
        for buffer, before in self._buffers:
            buffer.copy_(before)
        for part, state in self._learned:
            part.load_state_dict(state)


class Skipped:
    """The steps that were left out of a training: how many in all, and how many since the last that was not."""

    def __init__(self, state: Mapping[str, Tensor] | None = None) -> None:
        counts = (state or {}).get("steps")
        self.total, self.in_a_row = (0, 0) if counts is None else [int(count) for count in counts]

    @property
    def tells(self) -> bool:
        """Whether more than the count of the next one is wanted."""
        return self.total < NAMED or self.in_a_row + 1 >= IN_A_ROW

    @property
    def state(self) -> dict[str, Tensor]:
        """For the checkpoint; nothing where none was left out."""
        return {"steps": torch.tensor([self.total, self.in_a_row])} if self.total else {}

    def add(self, what: str, detail: str, last_good: Path | None, note: Callable[[str], None]) -> None:
        """Count one. Errors: NonFiniteLoss when it is one too many in a row."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= IN_A_ROW:
            raise stopped(f"{self.in_a_row} steps in a row were to be left out: {what}", detail, last_good, skip=True)
        if self.total <= NAMED:
            more = " Further steps are only counted." if self.total == NAMED else ""
            note(f"left out: {what}. {detail}{more}")

    @property
    def said(self) -> str:
        steps = "step was" if self.total == 1 else "steps were"
        return f"{self.total} {steps} left out, whose values were not finite"


def stopped(what: str, detail: str, last_good: Path | None, *, skip: bool = False) -> NonFiniteLoss:
    """The error of a training that cannot go on."""
    kept = f"The last good checkpoint is {last_good}." if last_good else "There is no checkpoint yet."
    others = "" if skip else "; training.on_nonfinite = 'skip' leaves such steps out"
    return NonFiniteLoss(
        f"{what}. {kept} {detail} Try a smaller training.lr, training.precision = '32-true', or another loss{others}."
    )


def gradient_size(model: nn.Module) -> Tensor:
    """A scalar that is finite exactly when every gradient is."""
    sizes = [parameter.grad.abs().amax() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(sizes).sum() if sizes else torch.zeros(())


def _parts(loss: Any) -> list[Any]:
    return list(getattr(loss, "parts", [loss]))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for each in output.values():
            yield from _tensors(each)
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(each)


def _listed(names: Sequence[str], chosen: Sequence[bool] | None = None) -> str:
    """The names, once each, the first eight of them."""
    found = list(dict.fromkeys(name for k, name in enumerate(names) if chosen is None or chosen[k]))
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
