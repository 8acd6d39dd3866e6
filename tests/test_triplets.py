"""Triplets are a pure function of (seed, index), of one place, in the order of their strengths."""

import numpy as np
import pytest
import torch

from tests.test_video import in_folder, moving, texture
from veridical.core.errors import BadOption, DataError, UnknownName
from veridical.core.image import check_image
from veridical.degradations import TASKS, degradation
from veridical.training.data import Photograph
from veridical.training.triplets import (
    STRENGTHS,
    PhotographTriplets,
    Triplet,
    VideoTriplets,
    picture,
    split_windows,
    triplets_from,
    two_strengths,
)
from veridical.training.video import Window, means


@pytest.fixture
def photographs() -> list[Photograph]:
    images = [torch.from_numpy(texture(seed)).permute(2, 0, 1) / 255 for seed in range(3)]
    return [Photograph(f"p{number}", image) for number, image in enumerate(images)]


def made(photographs: list[Photograph], task: str = "denoise", **options: object) -> PhotographTriplets:
    return PhotographTriplets(photographs, two_strengths(task), **{"crop": 32, "count": 4, "seed": 0, **options})


@pytest.mark.parametrize("task", STRENGTHS)
def test_every_task_has_two_strengths_and_weak_is_nearer(photographs, task):
    for sharp, weak, strong in made(photographs, task, crop=64):
        for image in (sharp, weak, strong):
            check_image(image[None], "a triplet", channels=(3,))
            assert image.shape == (3, 64, 64)
        assert 0 < (weak - sharp).square().mean() < (strong - sharp).square().mean()
    assert STRENGTHS.keys() <= TASKS.keys()


def test_a_triplet_is_a_function_of_seed_and_index(photographs):
    first, again = made(photographs), made(photographs, count=9)
    assert all(torch.equal(a, b) for a, b in zip(first[2], again[2], strict=True)), "whatever was asked before"
    assert all(torch.equal(a, b) for a, b in zip(list(first)[3], first[3], strict=True))
    assert not torch.equal(first[2].sharp, first[3].sharp)
    assert not torch.equal(first[2].weak, made(photographs, seed=1)[2].weak)


def test_weak_and_strong_are_of_one_chance(photographs):
    """The same pattern of noise, 10 and 25 of 255 strong."""
    for sharp, weak, strong in made(photographs):
        torch.testing.assert_close((strong - sharp) / 25, (weak - sharp) / 10, atol=1e-6, rtol=1e-5)


def test_strengths_of_ones_own(photographs):
    two = two_strengths("deblur", "jpeg(quality=80)", "jpeg(quality=10)")
    assert two.label == "weak: jpeg(quality=80); strong: jpeg(quality=10)"
    sharp, weak, _ = PhotographTriplets(photographs, two, crop=32, count=1, seed=0)[0]
    assert weak.shape == sharp.shape
    generator = torch.Generator().manual_seed(0)
    image = photographs[0].source
    assert torch.equal(two(image, generator)[3:], degradation("jpeg(quality=10)")(image))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), BadOption, "say what to order"),
        (("blur",), BadOption, "the task 'blur' has no strengths"),
        (("jpeg", "jpeg(quality=50)"), BadOption, "give both --weak and --strong"),
        ((None, "gaussian-noise(sigma_8bit=25)", "gaussian-noise"), BadOption, "nothing could be ordered"),
        ((None, "jpg", "jpeg"), UnknownName, "Did you mean 'jpeg'"),
    ],
)
def test_strengths_that_cannot_be_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        two_strengths(*arguments)


def test_a_degradation_that_changes_the_size_is_refused(photographs):
    two = two_strengths(None, "bicubic-downscale(scale=2)", "bicubic-downscale(scale=4)")
    with pytest.raises(DataError, match=r"one size, but .* makes them 2 times smaller. Enlarge them again"):
        PhotographTriplets(photographs, two, crop=32, count=1, seed=0)


def test_the_data_are_noted_by_what_they_hold(photographs):
    (noted,) = made(photographs).data
    assert noted["name"] == "3 photographs"
    assert made(list(reversed(photographs))).data == [noted]
    other = [*photographs[:2], Photograph("p2", photographs[0].source)]
    assert made(other).data[0]["sha256"] != noted["sha256"]


# Video


def test_the_crops_of_a_window_are_of_one_place(tmp_path):
    clip = in_folder(tmp_path / "a", moving([2 * t for t in range(40)]))
    window = Window(3, 20)
    (seen,) = means(clip, [window])
    triplets = VideoTriplets({clip: [window]}, crop=48, count=3, seed=0, flips=False)
    whole = [np.moveaxis(image, 2, 0) for image in seen[1:]]
    for triplet in triplets:
        places = [
            (top, left)
            for top in range(96 - 48 + 1)
            for left in range(128 - 48 + 1)
            if np.array_equal(whole[0][:, top : top + 48, left : left + 48], triplet.sharp)
        ]
        assert len(places) == 1
        top, left = places[0]
        for ours, image in zip(triplet, whole, strict=True):
            np.testing.assert_array_equal(ours, image[:, top : top + 48, left : left + 48])


def test_the_windows_share_the_triplets(tmp_path):
    clip = in_folder(tmp_path / "a", moving([2 * t for t in range(46)]))
    each = [Window(0, 15), Window(15, 30), Window(30, 45)]
    for count in (1, 2, 3, 7):
        triplets = VideoTriplets({clip: each}, crop=16, count=count, seed=0)
        assert len(list(triplets)) == len(triplets) == count
    shares = VideoTriplets({clip: each}, crop=16, count=7, seed=0).shares
    assert sorted(shares.values()) == [2, 2, 3]
    few, many = (VideoTriplets({clip: windows}, crop=16, count=2, seed=0) for windows in (each[:1], each[:1]))
    assert all(torch.equal(a, b) for one, two in zip(few, many, strict=True) for a, b in zip(one, two, strict=True))


def test_a_frame_is_never_both_learned_from_and_validated_on(tmp_path):
    clip = in_folder(tmp_path / "a", moving([0, 1]))
    overlapping = [Window(start, start + 15) for start in range(0, 100, 4)]
    learn, validate = split_windows({clip: overlapping})
    assert len(validate[clip]) == 5
    assert max(window.end for window in learn[clip]) <= min(window.start for window in validate[clip])
    assert len(learn[clip]) == 17
    with pytest.raises(DataError, match="the 1 window of a cannot be split"):
        split_windows({clip: [Window(0, 15)]})
    with pytest.raises(DataError, match="none is left to learn from"):
        split_windows({clip: [Window(0, 15), Window(4, 19)]})


def test_a_clip_smaller_than_a_crop_is_an_error(tmp_path):
    clip = in_folder(tmp_path / "a", moving([0, 1, 2]))
    with pytest.raises(DataError, match="a is 128x96 px, smaller than a crop of 97 px"):
        list(VideoTriplets({clip: [Window(0, 3)]}, crop=97, count=1, seed=0))


# What lies there


def options(**changes: object) -> dict[str, object]:
    return {"crop": 32, "count": 6, "validation_count": 3, "seed": 0, **changes}


def test_photographs_are_split_by_name(textures):
    learn, validate = triplets_from([textures], task="jpeg", **options())
    assert (len(learn), len(validate)) == (6, 3)
    names = [{pair.name for pair in each.samples.items} for each in (learn, validate)]
    assert (len(names[0]), len(names[1])) == (3, 1)
    assert not names[0] & names[1]
    learn, validate = triplets_from([textures, textures], [textures], task="jpeg", **options())
    assert [len(each.samples.items) for each in (learn, validate)] == [8, 4]


def test_a_folder_of_frames_is_a_clip_when_one_says_so(tmp_path):
    in_folder(tmp_path / "a", moving([2 * t for t in range(65)]))
    told: list[str] = []
    learn, validate = triplets_from([tmp_path], task="deblur", frames=True, note=told.append, **options())
    assert isinstance(learn, VideoTriplets)
    assert [[w.start for w in each.wanted[clip]] for each in (learn, validate) for clip in each.wanted] == [
        [0, 15, 30],
        [45],
    ]
    assert len(list(learn)) == 6
    assert told == ["a: 65 frames, 4 window(s) of 15 to 15 frames"]
    assert "windows" in learn.data[0]


def test_a_clip_without_motion_is_an_error_or_a_note(tmp_path):
    in_folder(tmp_path / "still" / "still", moving([0] * 30))
    in_folder(tmp_path / "both" / "moves", moving([2 * t for t in range(65)]))
    in_folder(tmp_path / "both" / "still", moving([0] * 30))
    in_folder(tmp_path / "short" / "short", moving([2 * t for t in range(9)]))
    for name, found in (("still", r"30 frames, which move 0\.0 px"), ("short", r"9 frames, which move 1\d\.\d px")):
        with pytest.raises(DataError, match=f"{name} gives no blur: it has {found}"):
            triplets_from([tmp_path / name], frames=True, **options())
    told: list[str] = []
    triplets_from([tmp_path / "both"], frames=True, note=told.append, **options())
    assert any(text.startswith("left out: still gives no blur") for text in told)


def test_data_of_the_wrong_kind_are_refused(textures, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    for changes, error, message in (
        ({"data": [], "validate": [textures]}, BadOption, "no data were named"),
        ({"data": [textures, tmp_path / "a.mp4"]}, DataError, "cannot be mixed"),
        ({"data": [tmp_path]}, DataError, "holds both images and videos"),
        ({"data": [tmp_path / "a.mp4"], "task": "denoise"}, BadOption, "motion blur alone"),
        ({"data": [tmp_path / "absent"]}, DataError, "there is no"),
    ):
        with pytest.raises(error, match=message):
            triplets_from(**{"task": "deblur", **options(), **changes})


def test_without_data_the_demos_photographs_serve_and_its_own_are_held_out():
    learn, held = triplets_from([], task="deblur", **options())
    assert learn[0].sharp.shape == held[0].sharp.shape == (3, 32, 32)
    assert not {item.name for item in learn.samples.items} & {item.name for item in held.samples.items}


def test_the_picture_shows_one_triplet_a_row():
    red, green, blue = (torch.eye(3)[k][:, None, None].expand(3, 100, 100) for k in range(3))
    sheet = picture([Triplet(red, green, blue), Triplet(blue, red, green)])
    assert sheet.size == (3 * 100 + 16, 18 + 2 * 104 + 4)
    assert [sheet.getpixel((50 + 104 * k, 70)) for k in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert sheet.getpixel((50, 180)) == (0, 0, 255)
