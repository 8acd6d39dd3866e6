"""What a recipe trains and evaluates on: folders, real pairs, sets as they ship, tasks of real pairs, scales."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_layouts import focus, gopro, grow
from veridical.comparison.observer import Observer
from veridical.comparison.sources import Sources, gather
from veridical.core.errors import DataError
from veridical.core.files import write_image
from veridical.degradations import TASKS, degradation
from veridical.training.recipe import make_recipe


def gathered(spec: str | None = None, **recipe: Any) -> tuple[Sources, list[str]]:
    """With crops of 16 px; and what was noted."""
    notes: list[str] = []
    recipe["training"] = {"crop": 16, **recipe.get("training", {})}
    made = make_recipe(recipe)
    spec = spec or made.degradation or TASKS[made.task].degradation
    return gather(made, degradation(spec) if spec else None, Observer(), notes.append), notes


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Nine of 40x40 px, at random."""
    for number in range(9):
        image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(number))
        write_image(tmp_path / "photographs" / f"{number}.png", image)
    return tmp_path / "photographs"


def test_a_set_gives_its_training_part_and_its_test_part(tmp_path: Path):
    at = f"gopro:{gopro(tmp_path)}"
    sources, notes = gathered(task="motion-deblur", data={"train": at, "evaluate": at})
    assert [pair.name for pair in sources.samples.items] == ["GOPR1/000001", "GOPR1/000002", "GOPR2/000001"]
    assert [pair.name for pair in sources.pairs.items] == ["GOPR3/000009"]
    assert sources.described == {"train": f"3 pairs, {at} (train)", "evaluate": f"1 pair, {at} (test)"}
    assert sources.degradation == "real pairs"
    assert notes == []


def test_photographs_to_train_on_and_a_set_to_evaluate_on(tmp_path: Path, photographs: Path):
    at = f"gopro:{gopro(tmp_path / 'set')}"
    sources, _ = gathered("box-blur", data={"train": str(photographs), "evaluate": at})
    assert len(sources.samples.items) == 9
    assert [pair.name for pair in sources.pairs] == ["GOPR3/000009"]
    assert sources.degradation == "box-blur(size=5)"
    assert [pair.kernel for pair in sources.pairs] == [None]


def test_a_set_without_parts_is_never_evaluated_on_what_was_trained_on(tmp_path: Path):
    at = f"focus-low:{focus(tmp_path)}"
    for data in ({"train": at, "evaluate": at}, {"train": at}):
        sources, notes = gathered(task="defocus-pairs", data=data)
        names = [[item.name for item in items] for items in (sources.samples.items, sources.pairs.items)]
        assert sorted(names[0] + names[1]) == ["soda2", "tea"]
        assert len(names[1]) == 1
        assert "no evaluation data was named" in notes[0]


def test_a_set_without_parts_is_evaluated_on_whole_where_it_is_not_trained_on(tmp_path: Path, photographs: Path):
    data = {"train": str(photographs), "evaluate": f"focus-high:{focus(tmp_path / 'set')}"}
    sources, notes = gathered("box-blur", data=data)
    assert len(sources.pairs) == 2
    assert notes == []


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.pairs])
def test_a_task_of_pairs_asks_for_them(task: str, photographs: Path):
    for data in ({}, {"train": str(photographs)}):
        with pytest.raises(DataError, match=rf"the task {task} is of real pairs.*--pairs DEGRADED SHARP.*gopro:FOLDER"):
            gathered(task=task, data=data)
    sources, _ = gathered("box-blur", task=task, data={"train": str(photographs)})
    assert sources.degradation == "box-blur(size=5)"


def test_photographs_that_shrink_on_both_sides(photographs: Path):
    sources, _ = gathered(task="super-resolve", data={"train": str(photographs)})
    assert sources.samples.scale == sources.pairs.scale == 4
    low, high = sources.samples[0]
    assert (low.shape, high.shape) == ((3, 4, 4), (3, 16, 16))
    (pair,) = sources.pairs
    assert (pair.degraded.shape, pair.sharp.shape) == ((3, 10, 10), (3, 40, 40))


def test_two_scales_are_refused(tmp_path: Path, photographs: Path):
    data = {"train": str(photographs), "evaluate": f"gopro:{gopro(tmp_path / 'set')}"}
    with pytest.raises(DataError, match="trained on is to become 4 times as large, but what is evaluated on 1 times"):
        gathered(task="super-resolve", data=data)


def test_measured_kernels_reach_the_pairs(tmp_path: Path):
    for side in ("blur", "sharp"):
        grow(tmp_path / side, "im1_ker01.png", "im1_ker02.png")
    kernel = np.array([[0.0, 1.0, 3.0]])
    for number in (1, 2):
        (tmp_path / "kernels").mkdir(exist_ok=True)
        np.save(tmp_path / "kernels" / f"kernel0{number}.npy", kernel)
    folders = [str(tmp_path / "blur"), str(tmp_path / "sharp")]
    for flip, expected in ((False, [[0, 0.25, 0.75]]), (True, [[0.75, 0.25, 0]])):
        data = {"pairs": folders, "kernels": str(tmp_path / "kernels"), "flip_kernels": flip}
        sources, _ = gathered(task="motion-deblur", data=data)
        (pair,) = sources.pairs
        assert pair.kernel is not None
        assert pair.kernel.tolist() == expected


def test_kernels_without_pairs_are_refused(photographs: Path):
    with pytest.raises(DataError, match=r"measured kernels of real pairs, but .*data\.pairs_evaluate"):
        gathered("box-blur", data={"train": str(photographs), "kernels": "kernels"})
