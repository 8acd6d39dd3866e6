"""What `veridical estimate` prints: the costs as they were measured, and what follows from them."""

import math
from collections.abc import Sequence

from veridical.comparison.estimate import Measured
from veridical.comparison.forecast import NAMES, Forecast, bytes_per_step
from veridical.comparison.schedule import SPENDING

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, columns, rows


def tables(measured: Measured, forecasts: Sequence[Forecast]) -> list[Table]:
    """Of the costs, of the losses, and of the forecasts."""
    return [_costs(measured, forecasts[0].makers), _steps(measured, forecasts[0].makers), _forecasts(forecasts)]


def notes(forecasts: Sequence[Forecast]) -> list[str]:
    """What was assumed, and for each number of workers what would change the time."""
    first = forecasts[0].assumed
    speeds = ", ".join(f"{each:g}" for each in dict.fromkeys(each.assumed.speed for each in forecasts))
    storage = "no limit" if first.storage == math.inf else f"{first.storage / 1e6:g} MB/s in all"
    lost = "never" if first.lost_every_hours == math.inf else f"every {first.lost_every_hours:g} hours"
    said = [
        f"assumed, not measured: a device {speeds} times as fast as the one here (device and evaluation alone are sped "
        f"up); storage: {storage}; a worker is lost {lost}; processes that make batches for each: {forecasts[0].makers}"
    ]
    for each in forecasts:
        where = f"{each.assumed.workers} worker{'s' if each.assumed.workers > 1 else ''}, speed {each.assumed.speed:g}"
        said += [f"{where}: {'; '.join(each.advice)}"] if each.advice else []
    return said


def _costs(measured: Measured, makers: int) -> Table:
    photographs, evaluation = measured.photographs, measured.evaluation
    read = bytes_per_step(measured, makers)
    metrics = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in evaluation.metrics.items())
    restoring = ", ".join(
        f"{name + ' ' if len(evaluation.restoring) > 1 else ''}{_seconds(seconds)}"
        for name, seconds in evaluation.restoring.items()
    )
    missing = photographs.missing(makers)
    rows: list[tuple[str, ...]] = [
        ("a process starts", _seconds(measured.start_s), "imports, and the device awake"),
        (
            "checks before the first step",
            _seconds(measured.preparing_s),
            f"models, losses, evaluation images; a worker takes {_seconds(measured.cell_preparing_s)} for each cell",
        ),
        (
            "photographs read",
            _seconds(photographs.reading_s),
            f"{photographs.count}: {_bytes(photographs.file_bytes)}, decoded {_bytes(photographs.decoded_bytes)}; one "
            f"takes a core {_seconds(photographs.decode_s)}",
        ),
        (
            "a batch",
            _seconds(measured.making_s(makers)),
            f"{_seconds(measured.batch_s)} where photographs are decoded; {missing:.0%} of samples decode theirs anew",
        ),
        (
            "bytes of a step",
            _bytes(read["to_device"]),
            f"crops to the device; files {_bytes(read['files'])}, decoded {_bytes(read['decoded'])}",
        ),
        ("rest of the loop, a step", _seconds(measured.rest_s), "logging, watching for values that are not finite"),
        ("a checkpoint", _seconds(measured.checkpoint_s), _bytes(measured.checkpoint_bytes)),
        (
            "evaluation of a cell",
            _seconds(sum(evaluation.seconds(model) for model in list(evaluation.restoring)[:1])),
            f"{evaluation.images} images, {evaluation.megapixels:.3g} MP: degrading {_seconds(evaluation.degrading)}, "
            f"restoring {restoring}, {metrics}, writing {_seconds(evaluation.writing)}",
        ),
        (
            "a finished cell recorded",
            _seconds(measured.record_s),
            f"and {_seconds(measured.record_growth_s)} more for each cell of the run before it",
        ),
    ]
    machine = measured.machine
    title = f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['device']}, {machine['threads']} threads"
    return title, ("what", "takes", "of which"), rows


def _steps(measured: Measured, makers: int) -> Table:
    batch = measured.making_s(makers)
    rows: list[tuple[str, ...]] = []
    for cost in measured.steps:
        device_s = cost.seconds + measured.rest_s
        step_s = max(device_s, batch / makers) if makers else device_s + batch
        rows.append(
            (
                cost.name,
                *(_seconds(each) for each in (batch, cost.model, cost.loss + cost.learning, cost.optimiser, step_s)),
                _bytes(cost.peak_bytes),
                _hours(measured.recipe["steps"] * step_s),
            )
        )
    title = f"A step, and a training of {measured.recipe['steps']} steps, on this machine"
    return title, ("loss", "batch", "model", "loss itself", "optimiser", "step", "peak memory", "training"), rows


def _forecasts(forecasts: Sequence[Forecast]) -> Table:
    grid = forecasts[0].grid
    rows: list[tuple[str, ...]] = []
    for each in forecasts:
        shares = sorted(SPENDING, key=lambda name, of=each: -of.schedule.shares[name])[:3]  # type: ignore[misc]
        rows.append(
            (
                f"{each.assumed.workers}",
                f"{each.assumed.speed:g}",
                _hours(each.schedule.seconds),
                _hours(each.in_order.seconds),
                f"{each.worker_hours:.3g}",
                _bytes(each.disk),
                _bytes(each.schedule.moved),
                ", ".join(
                    f"{NAMES[name]} {each.schedule.shares[name]:.0%}"
                    for name in shares
                    if each.schedule.shares[name] > 0.005
                ),
            )
        )
    title = f"{grid.losses} losses x {grid.tasks} tasks x {grid.seeds} seeds: {grid.cells} trainings"
    columns = (
        "workers", "speed (assumed)", "takes", "in recipe order", "worker-hours", "on disk", "moved", "time goes to",
    )  # fmt: skip
    return title, columns, rows


def _seconds(seconds: float) -> str:
    """
    >>> _seconds(0.0123), _seconds(4.25), _seconds(754)
    ('12.3 ms', '4.25 s', '12.6 min')
    """
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min" if seconds < 7200 else _hours(seconds)


def _hours(seconds: float) -> str:
    """
    >>> _hours(30), _hours(1.2e4), _hours(1e6)
    ('30 s', '3.33 h', '278 h')
    """
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else _seconds(seconds)


def _bytes(number: float) -> str:
    """
    >>> _bytes(120), _bytes(1.5e6), _bytes(2.25e12)
    ('120 B', '1.5 MB', '2.25 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
