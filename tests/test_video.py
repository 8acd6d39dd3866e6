"""Windows of video are as long as the motion says, and their means are those of NumPy."""

import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.shared import shared_data
from veridical.core.errors import BadOption, DataError, MissingExtra
from veridical.training import video
from veridical.training.video import Clip, Motion, Window, clips_in, means, motion_of, read_frames, windows

HEIGHT, WIDTH = 96, 128


def texture(seed: int, width: int = 400) -> np.ndarray:
    """Something with corners: coarse noise, enlarged smoothly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 6, width // 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, HEIGHT), Image.Resampling.BICUBIC))


def moving(places: list[int], seed: int = 0) -> list[np.ndarray]:
    """Frames of a camera that looks at these places of a texture."""
    wide = texture(seed)
    return [wide[:, place : place + WIDTH] for place in places]


def in_folder(folder: Path, frames: list[np.ndarray]) -> Clip:
    """Named so that sorting by letters would mix them up."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{number}.png")
    (clip,) = clips_in(folder, frames=True)
    return clip


def written(path: Path, frames: list[np.ndarray], codec: str) -> Path:
    import cv2

    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 30, (width, height))
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    return path


@pytest.mark.parametrize(
    ("shift", "length"),
    [(1, 26), (2, 15), (5, 15)],  # 25 shifts of 1 px; 13 of 2 px would be 14 frames, and 5 of 5 px 6: at least 15
)
def test_a_known_shift_gives_windows_of_known_length(tmp_path, shift, length):
    clip = in_folder(tmp_path / "a", moving([shift * t for t in range(53)]))
    motion = motion_of(clip)
    assert motion.frames == 53
    assert motion.shift_px == pytest.approx([shift] * 52, abs=0.1)
    exact = Motion((float(shift),) * 52)
    assert windows(exact) == [Window(s, s + length) for s in range(0, 53 - length + 1, length)]
    assert [abs(w.end - w.start - length) <= 1 for w in windows(motion)] == [True] * len(windows(motion))
    assert len(windows(motion)) >= 1


def test_a_window_ends_with_the_first_frame_that_moved_far_enough():
    """2 and 1 px in turn: 24 px after 16 shifts, 26 after 17, which are 18 frames."""
    motion = Motion((2.0, 1.0) * 30)
    assert windows(motion)[0] == Window(0, 18)
    assert windows(motion, shift_px=24)[0] == Window(0, 17)
    assert windows(motion, every=4)[:3] == [Window(0, 18), Window(4, 22), Window(8, 26)]


def test_a_picture_that_stands_still_is_passed_over():
    motion = Motion((0.0,) * 300 + (5.0,) * 20)
    found = windows(motion, longest=60)
    assert found == [Window(246, 306), Window(306, 321)]
    assert windows(motion, longest=1000)[0].start == 0
    assert windows(Motion((0.0,) * 100)) == []


def test_no_window_spans_a_cut(tmp_path):
    clip = in_folder(tmp_path / "a", moving([2 * t for t in range(20)]) + moving([2 * t for t in range(20)], seed=7))
    motion = motion_of(clip)
    assert motion.cuts == {19}
    assert motion.shift_px[19] == 0
    assert windows(motion) == [Window(0, 15), Window(20, 35)]


def test_lost_tracks_and_frames_without_corners_are_survived(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(3)]
    black = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3
    frames = moving([2 * t for t in range(6)]) + noise + moving([2 * t for t in range(6)]) + black + moving([0, 2, 4])
    motion = motion_of(in_folder(tmp_path / "a", frames))
    assert len(motion.shift_px) == len(frames) - 1
    assert motion.shift_px[:5] == pytest.approx([2] * 5, abs=0.1)
    assert motion.shift_px[9:14] == pytest.approx([2] * 5, abs=0.1), "corners are detected afresh"
    assert motion.shift_px[15:17] == (0.0, 0.0)
    assert motion.shift_px[-2:] == pytest.approx([2, 2], abs=0.1)


@pytest.mark.parametrize("linear_light", [False, True])
def test_means_are_those_of_numpy(tmp_path, linear_light):
    frames = moving([3 * t for t in range(40)])
    clip = in_folder(tmp_path / "a", frames)
    wanted = [Window(2, 18), Window(9, 24)]  # 16 and 15 frames, overlapping
    found = list(means(clip, wanted, linear_light=linear_light))
    assert [each.window for each in found] == wanted
    values = np.stack(frames) / 255.0
    if linear_light:
        values = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    halves = [range(6, 14), range(12, 21)]
    for each, window, half, centre in zip(found, wanted, halves, [10, 16], strict=True):
        expected = [values[list(half)].mean(0), values[window.start : window.end].mean(0)]
        if linear_light:
            expected = [np.where(v <= 0.0031308, v * 12.92, 1.055 * v ** (1 / 2.4) - 0.055) for v in expected]
        np.testing.assert_allclose(each.sharp, frames[centre] / 255.0, atol=1e-7)
        np.testing.assert_allclose(each.weak, expected[0], atol=1e-6)
        np.testing.assert_allclose(each.strong, expected[1], atol=1e-6)
        assert each.strong.dtype == np.float32


def test_linear_light_makes_the_mean_of_black_and_white_brighter(tmp_path):
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    clip = in_folder(tmp_path / "a", [black, white] * 8)
    plain, light = (next(means(clip, [Window(0, 16)], linear_light=on)).strong[0, 0, 0] for on in (False, True))
    assert plain == pytest.approx(0.5, abs=1e-6)
    assert light == pytest.approx(0.7354, abs=1e-4)  # sRGB's code for half the light: 187.5 of 255


def test_frames_are_let_go_as_they_are_read(tmp_path, monkeypatch):
    """Memory does not grow with the clip or the window: never more than a few frames are alive."""
    alive: list[weakref.ref] = []
    most = 0

    class Frame(np.ndarray):
        pass

    def counted(_clip):
        nonlocal most
        for place in range(200):
            frame = np.full((16, 16, 3), place % 256, np.uint8).view(Frame)
            alive.append(weakref.ref(frame))
            most = max(most, sum(each() is not None for each in alive))
            yield frame

    monkeypatch.setattr(video, "read_frames", counted)
    assert len(list(means(Clip("a", tmp_path), [Window(0, 90), Window(90, 200)]))) == 2
    assert most <= 6


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "mp4v"), (".avi", "MJPG"), (".mkv", "FFV1")])
def test_a_video_file_gives_its_frames(tmp_path, suffix, codec):
    frames = moving([2 * t for t in range(20)])
    (clip,) = clips_in(written(tmp_path / f"a{suffix}", frames, codec))
    found = list(read_frames(clip))
    assert len(found) == 20
    for ours, original in zip(found, frames, strict=True):
        assert ours.shape == original.shape
        assert np.abs(ours.astype(int) - original).mean() < 12, "the colours are in order; the codec loses a little"
    seen: list[tuple[int, int]] = []
    motion = motion_of(clip, progress=lambda done, total: seen.append((done, total)))
    assert motion.shift_px == pytest.approx([2] * 19, abs=0.3)
    assert seen[-1] == (20, 20)


def test_frames_are_in_natural_order(tmp_path):
    clip = in_folder(tmp_path / "a", moving(list(range(12))))
    assert [path.name for path in clip.source] == [f"frame{number}.png" for number in range(12)]


def test_a_folder_of_clips_gives_them_all(tmp_path):
    for name in ("take10", "take9"):
        in_folder(tmp_path / "scenes" / name, moving([0, 1]))
    assert [clip.name for clip in clips_in(tmp_path / "scenes", frames=True)] == ["take9", "take10"]
    (tmp_path / "films").mkdir()
    for name in ("b.mkv", "a.mkv"):
        written(tmp_path / "films" / name, moving([0, 1]), "FFV1")
    films = clips_in(tmp_path / "films")
    assert [clip.name for clip in films] == ["a", "b"]
    assert films[0].sha256 == clips_in(tmp_path / "films" / "a.mkv")[0].sha256 != films[1].sha256


def test_what_cannot_be_read_is_an_error_that_says_why(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.avi").write_bytes(b"")
    whole = written(tmp_path / "whole.mp4", moving([2 * t for t in range(20)]), "mp4v").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("text.mp4", "empty.avi", "cut.mp4"):
        (clip,) = clips_in(tmp_path / name)
        with pytest.raises(DataError, match=f"{name} cannot be read as a video"):
            motion_of(clip)
    with pytest.raises(DataError, match="there is no"):
        clips_in(tmp_path / "absent.mp4")
    with pytest.raises(DataError, match="is no video"):
        clips_in(in_folder(tmp_path / "a", moving([0])).source[0])
    with pytest.raises(DataError, match="holds no video"):
        clips_in(tmp_path / "a")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no frames"):
        clips_in(tmp_path / "nothing", frames=True)


def test_opencv_does_not_print_what_our_error_says(tmp_path):
    """In a process of its own: FFmpeg asks how much to say when it is first used."""
    (tmp_path / "a.mp4").write_bytes(b"\0" * 2000)
    code = (
        "import sys, pathlib; from veridical.training.video import clips_in, motion_of\n"
        "try: motion_of(clips_in(pathlib.Path(sys.argv[1]))[0])\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mp4")], capture_output=True, text=True)
    assert "cannot be read as a video" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_a_damaged_frame_and_frames_of_two_sizes_are_named(tmp_path):
    clip = in_folder(tmp_path / "a", moving([0, 1, 2]))
    Image.fromarray(texture(0)).save(clip.source[1])
    with pytest.raises(DataError, match="frame 1 is 400x96 px, but those before are 128x96"):
        list(read_frames(clip))
    clip.source[1].write_bytes(clip.source[0].read_bytes()[:300])
    with pytest.raises(DataError, match=r"frame1\.png"):
        list(read_frames(clip))


@pytest.mark.parametrize(
    "options", [{"shift_px": -1}, {"least": 2}, {"least": 20, "longest": 15}, {"every": 0}, {"shift_px": float("nan")}]
)
def test_an_impossible_window_is_refused(options):
    with pytest.raises(BadOption):
        windows(Motion((1.0,) * 60), **options)


def test_without_opencv_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"veridical\[compare\]"):
        motion_of(Clip("a", tmp_path / "a.mp4"))


def test_a_real_clip_of_240_frames_a_second_moves():
    (clip,) = clips_in(shared_data("video/gopro_240fps.mp4"))
    motion = motion_of(clip)
    assert (motion.frames, motion.cuts) == (299, frozenset())
    found = windows(motion)
    assert all(15 <= window.end - window.start <= 60 for window in found)
    assert len(found) >= 10
    first = next(means(clip, found[:1]))
    assert np.abs(first.sharp - first.weak).mean() < np.abs(first.sharp - first.strong).mean()
