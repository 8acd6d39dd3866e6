"""The simulation of a grid of trainings: beside what arithmetic says where arithmetic can say it."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from veridical.comparison.schedule import SPENDING, Cell, Cluster, Photographs, longest_first, simulate
from veridical.core.errors import VeridicalError


def cells(count: int, **rest: object) -> list[Cell]:
    return [Cell(f"cell {number}", **rest) for number in range(count)]  # type: ignore[arg-type]


def mixed(count: int, seed: int = 0) -> list[Cell]:
    """Cells of very different lengths, of two tasks, with checkpoints and results."""
    draw = random.Random(seed)
    return [
        Cell(
            f"cell {number}",
            task=draw.choice("ab"),
            preparing_s=draw.uniform(0, 1),
            steps=draw.randint(1, 40),
            device_s=draw.uniform(0.1, 5),
            making_s=draw.uniform(0, 4),
            checkpoint_every=draw.randint(1, 12),
            checkpoint_s=draw.uniform(0, 1),
            checkpoint_bytes=draw.uniform(0, 50),
            evaluation_s=draw.uniform(0, 9),
            result_bytes=draw.uniform(0, 90),
        )
        for number in range(count)
    ]


BUSY = Cluster(3, makers=2, before_s=4, start_s=2, storage=40, record_s=0.5, record_growth_s=0.01, sparing=3)
PHOTOGRAPHS = {"a": Photographs(3, 70), "b": Photographs(1, 20)}


def test_one_worker_takes_the_sum_of_everything() -> None:
    cell = Cell("x", "a", steps=10, device_s=2, making_s=0.5, checkpoint_every=4, checkpoint_s=1, evaluation_s=7)
    cell = replace(cell, checkpoint_bytes=20, result_bytes=30)
    cluster = Cluster(start_s=5, storage=10, record_s=0.25, record_growth_s=0.125, driver_waits=True)
    found = simulate([cell] * 3, cluster, {"a": Photographs(11, 40)})
    one = 10 * 2.5 + 3 * (1 + 2) + 7 + 3
    assert found.seconds == pytest.approx(5 + 11 + 4 + 3 * one + 3 * 0.25 + (1 + 2 + 3) * 0.125)
    assert found.moved == 40 + 3 * (3 * 20 + 30)
    assert found.spent["device"] == pytest.approx(60)
    assert found.spent["batches"] == pytest.approx(15)
    assert found.spent["driver"] == pytest.approx(0.75 + 0.75)


@pytest.mark.parametrize("workers", [1, 2, 7, 8, 10, 64])
def test_equal_cells_come_in_rounds(workers: int) -> None:
    found = simulate(cells(20, steps=3, device_s=2), Cluster(workers))
    assert found.seconds == pytest.approx(6 * math.ceil(20 / workers))
    assert found.spent["idle"] == pytest.approx(workers * found.seconds - 120)


def test_a_slow_storage_takes_as_long_as_all_bytes_need() -> None:
    found = simulate(cells(40, device_s=1e-9, result_bytes=50), Cluster(8, storage=10))
    assert found.seconds == pytest.approx(40 * 50 / 10)
    assert found.bottleneck == "storage"


def test_transfers_share_the_storage_equally() -> None:
    """Three begin together: each has a third of the bandwidth, and those that are left have more."""
    three = [Cell(str(size), device_s=0, result_bytes=size) for size in (10, 20, 60)]
    found = simulate(three, Cluster(3, storage=10))
    assert {each.cell.name: each.ended for each in found.finished} == pytest.approx({"10": 3, "20": 5, "60": 9})


def test_a_slow_driver_takes_the_sum_of_its_work_however_many_workers_there_are() -> None:
    """For n cells n a + b n (n + 1) / 2: it grows with the square where each record rewrites those before."""
    cluster = Cluster(1000, record_s=2, record_growth_s=0.5)
    found = simulate(cells(100, device_s=1), cluster)
    assert found.seconds == pytest.approx(1 + 100 * 2 + 0.5 * 100 * 101 / 2)
    assert found.bottleneck == "driver"


def test_a_sparing_driver_takes_a_small_share_of_the_time_whatever_the_number_of_cells() -> None:
    """It rests ten times as long as it wrote: no more than an eleventh of the time goes to it, and what is left to be
    written at the end is written once."""
    for count in (10, 100, 1000):
        found = simulate(cells(count, device_s=1), Cluster(driver_waits=True, record_growth_s=0.5, sparing=10))
        assert found.spent["driver"] <= count / 10 + 2 * 0.5 * count
        eager = simulate(cells(count, device_s=1), Cluster(driver_waits=True, record_growth_s=0.5))
        assert eager.seconds == pytest.approx(count + 0.5 * count * (count + 1) / 2)
    assert simulate(cells(3), Cluster(3, record_s=1, sparing=10)).seconds == pytest.approx(1 + 1 + 1)


def test_each_task_has_a_driver_of_its_own() -> None:
    both = cells(10, task="a") + cells(10, task="b")
    found = simulate(both, Cluster(1000, record_growth_s=1))
    assert found.seconds == pytest.approx(1 + 10 * 11 / 2)


def test_workers_begin_when_the_driver_has_made_everything_ready() -> None:
    found = simulate(cells(4, preparing_s=2), Cluster(2, before_s=30, start_s=5))
    assert found.seconds == pytest.approx(30 + 5 + 2 * (2 + 1))
    assert found.spent["driver"] == pytest.approx(2 * 30)
    assert found.spent["preparing"] == pytest.approx(2 * 5 + 4 * 2)


@pytest.mark.parametrize(("makers", "step"), [(0, 5.0), (1, 4.0), (2, 2.0), (4, 1.0), (50, 1.0)])
def test_a_step_is_as_slow_as_the_slower_of_device_and_data(makers: int, step: float) -> None:
    found = simulate(cells(1, steps=10, device_s=1, making_s=4), Cluster(makers=makers))
    assert found.seconds == pytest.approx(10 * step)
    assert found.spent["batches"] == pytest.approx(10 * (step - 1))


def test_photographs_are_read_once_by_each_worker_and_task() -> None:
    both = cells(6, task="a") + cells(6, task="b")
    found = simulate(both, Cluster(3), {"a": Photographs(10, 5), "b": Photographs(20, 7)})
    assert found.spent["preparing"] == pytest.approx(3 * 30)
    assert found.moved == 3 * 12


def test_the_longest_cell_at_the_end_keeps_all_waiting_unless_it_comes_first() -> None:
    short, long = cells(30, device_s=1), Cell("long", device_s=10)
    assert simulate([*short, long], Cluster(4)).seconds == pytest.approx(17)
    assert simulate(longest_first([*short, long]), Cluster(4)).seconds == pytest.approx(10)


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("hours", [math.inf, 0.02])
def test_every_cell_ends_exactly_once_and_no_second_is_unaccounted_for(workers: int, hours: float) -> None:
    wanted = mixed(25)
    found = simulate(wanted, replace(BUSY, workers=workers, lost_every_s=hours * 3600), PHOTOGRAPHS)
    assert Counter(each.cell.name for each in found.finished) == Counter(each.name for each in wanted)
    assert set(found.spent) == set(SPENDING)
    assert all(seconds >= -1e-9 for seconds in found.spent.values())
    assert sum(found.spent.values()) == pytest.approx(workers * found.seconds)
    by_worker: dict[int, float] = {}
    for each in found.finished:  # in the order in which they ended
        assert each.begun >= by_worker.get(each.worker, 0.0)
        by_worker[each.worker] = each.ended
    assert bool(found.losses) == (hours < math.inf)


def test_no_schedule_beats_what_it_cannot_beat() -> None:
    wanted = mixed(40)
    for workers in (1, 2, 5, 40, 80):
        found = simulate(longest_first(wanted), replace(BUSY, workers=workers), PHOTOGRAPHS)
        work = [cell.seconds(BUSY.makers) for cell in wanted]
        assert found.seconds >= max(sum(work) / workers, max(work), found.moved / BUSY.storage) - 1e-9


def test_a_lost_worker_costs_the_steps_since_its_last_checkpoint_and_a_new_start() -> None:
    """One that lives on average as long as the training: what is done again is less than a stretch for each loss."""
    cell = Cell("x", steps=1000, device_s=1, checkpoint_every=10)
    found = simulate([cell], Cluster(start_s=3, lost_every_s=100), seed=4)
    assert found.losses > 3
    assert found.spent["device"] == pytest.approx(1000)
    assert 0 < found.spent["lost"] <= found.losses * 10 + 1e-6
    assert found.seconds == pytest.approx(1000 + found.spent["lost"] + found.spent["preparing"])
    rarer = simulate([replace(cell, checkpoint_every=100)], Cluster(start_s=3, lost_every_s=100), seed=4)
    assert rarer.seconds > found.seconds


def test_a_free_worker_takes_the_cell_of_a_lost_one() -> None:
    """One cell for two workers: with one of many seeds the one that had nothing to do ends it."""
    cluster = Cluster(2, start_s=40, lost_every_s=80)
    found = [simulate(cells(1, steps=50, checkpoint_every=1), cluster, seed=seed) for seed in range(20)]
    assert {each.finished[0].worker for each in found if each.losses} == {0, 1}


def test_workers_that_never_come_to_a_checkpoint_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(VeridicalError, match=r"smaller training\.checkpoint_every"):
        simulate(cells(2, steps=1000, device_s=1), Cluster(2, lost_every_s=1))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"makers": -1}, {"storage": 0}, {"lost_every_s": 0}])
def test_impossible_clusters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(VeridicalError, match=next(iter(wrong))):
        Cluster(**wrong)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_losses() -> None:
    cluster = replace(BUSY, lost_every_s=60)
    assert simulate(mixed(9), cluster, seed=3) == simulate(mixed(9), cluster, seed=3)
    assert simulate(mixed(9), cluster, seed=3).seconds != simulate(mixed(9), cluster, seed=4).seconds
