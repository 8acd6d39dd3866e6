"""The images that MDF's discriminators learn from."""

from pathlib import Path

import pytest
import torch

from veridical.core.errors import DataError, UnknownName
from veridical.core.files import write_image
from veridical.training.photographs import EVALUATE, EVALUATE_PX, TRAIN
from veridical.training.seeds import seed_image


def test_a_photograph_of_the_demo_comes_whole() -> None:
    name, image = seed_image("astronaut")
    assert name == "astronaut"
    assert image.shape == (3, 512, 512)
    assert image.shape[1] > EVALUATE_PX
    assert 0 <= image.min() < image.max() <= 1


def test_a_file_is_read_as_rgb_and_is_called_by_its_name(tmp_path: Path) -> None:
    grey = torch.arange(0, 12).reshape(1, 3, 4) / 255
    write_image(tmp_path / "own.png", grey)
    name, image = seed_image(str(tmp_path / "own.png"))
    assert name == "own.png"
    torch.testing.assert_close(image, grey.repeat(3, 1, 1), rtol=0, atol=0)


def test_a_name_that_nobody_has_gives_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'astronaut'") as raised:
        seed_image("astronot")
    assert all(name in str(raised.value) for name in TRAIN | EVALUATE)


@pytest.mark.parametrize("text", ["missing.png", "folder/missing", "."])
def test_a_path_without_an_image_is_named(text: str) -> None:
    with pytest.raises(DataError, match="cannot read"):
        seed_image(text)
