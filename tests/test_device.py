"""Where to compute: what is asked for is there, or the error says what is."""

import pytest
import torch

from veridical.core.errors import RecipeError
from veridical.training.device import choose_device


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("two_cards")
def test_auto_takes_the_fastest_there_is() -> None:
    assert choose_device("auto", count=2) == torch.device("cuda")


@pytest.mark.usefixtures("no_card")
def test_auto_is_the_processor_where_there_is_nothing_else() -> None:
    assert choose_device("auto", count=4) == torch.device("cpu")


@pytest.mark.usefixtures("two_cards")
def test_one_of_several_can_be_named() -> None:
    assert choose_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"the device '{name}' is not available: torch finds 0 of that kind"):
        choose_device(name)


@pytest.mark.usefixtures("two_cards")
def test_more_devices_than_there_are_are_refused() -> None:
    with pytest.raises(RecipeError, match="torch finds 2 of that kind"):
        choose_device("cuda:2")
    with pytest.raises(RecipeError, match="3 devices 'cuda' are not available: torch finds 2"):
        choose_device("cuda", count=3)


@pytest.mark.parametrize("name", ["gpu", "meta"])
def test_a_word_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"unknown device '{name}'. Expected auto, cpu"):
        choose_device(name)
