"""What a loss sees: distortions of one energy, and where descending the loss leads."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import veridical
from tests.photographs import photograph, write_photographs
from veridical.cli import app
from veridical.comparison import probe_page
from veridical.comparison.distortions import DISTORTIONS, OutOfReach, distort
from veridical.comparison.probe import NothingToProbe, Settings, descend, evaluator, picture_of, probe, relative
from veridical.comparison.probe_card import MOST_BYTES, write_cards
from veridical.core.errors import BadOption, DataError, UnknownName
from veridical.losses.reference import FAMILIES
from veridical.training.photographs import demo_photographs

SIZE = 32


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERIDICAL_OFFLINE", "1")  # LPIPS is measured where its weights are at hand
        yield


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.from_numpy(photograph(3, SIZE, SIZE)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A probe of four losses on a small photograph, with its page."""
    out = tmp_path_factory.mktemp("probe")
    photo = write_photographs(out / "in", 1) / "photo0.png"
    settings = Settings(image=photo, crop=SIZE, steps=6, psnr_db=(20, 30))
    probe(["l1", "l2", "spl-a", "sharpness-q"], out / "probe", settings)
    probe_page.write_page(out / "probe")
    return out / "probe"


def read(folder) -> dict:
    return json.loads((folder / "probe.json").read_text())


# Distortions


@pytest.mark.parametrize("psnr_db", [22.0, 30.0])
@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distortion_has_the_psnr_that_was_asked_for(image, name, psnr_db):
    spoilt = distort(DISTORTIONS[name], image, psnr_db)
    error = (spoilt.image.double() - image.double()).square().mean()
    assert -10 * torch.log10(error).item() == pytest.approx(psnr_db, abs=0.05)
    assert spoilt.image.min() >= 0
    assert spoilt.image.max() <= 1


def test_l2_cannot_tell_distortions_of_one_psnr_apart(image):
    value = evaluator(veridical.loss("l2"), image)
    values = [value(distort(each, image, 26.0).image) for each in DISTORTIONS.values()]
    assert values == pytest.approx([10**-2.6] * len(values), rel=1e-3)


def test_a_distortion_that_does_not_reach_the_psnr_is_named():
    flat = torch.full((3, SIZE, SIZE), 0.5)
    for name in ("blur", "contrast", "shift", "ringing", "jpeg"):
        with pytest.raises(OutOfReach, match=f"{name} does not reach 20 dB"):
            distort(DISTORTIONS[name], flat, 20.0)


def test_a_shift_by_a_whole_pixel_moves_the_image(image):
    moved = DISTORTIONS["shift"].apply(image, 1.0, 0)
    torch.testing.assert_close(moved[:, 1:, 1:], image[:, :-1, :-1], rtol=0, atol=1e-5)


def test_noise_is_a_function_of_the_seed(image):
    first, second, other = (distort(DISTORTIONS["noise"], image, 25.0, seed=seed).image for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_responses_are_over_the_mean_of_their_sizes():
    shares = relative({"a": [1.0, 4.0], "b": [1.0, -2.0], "c": [1.0, None]}, 1)
    assert shares == {"a": pytest.approx(4 / 3), "b": pytest.approx(-2 / 3), "c": None}


def test_words_say_what_is_seen_and_what_is_rewarded():
    about = {"settings": {"psnr_db": [28.0]}}

    def said(**values: float) -> str:
        return probe_page.extremes(about, {"responses": {name: [value] for name, value in values.items()}})

    assert said(blur=3.0, noise=1.0, shift=0.0) == "sees blur most (2.25), shift least (0.00)."
    assert said(blur=2.0, noise=-2.0, shift=-1.0) == "sees blur most (1.20), rewards noise (-1.20) and shift (-0.60)."
    assert said(blur=2.0, noise=2.0) == "makes no difference between them."


# Descending


@pytest.mark.parametrize("spec", ["l1", "l2", "ssim", "edge"])
def test_descending_a_loss_of_the_image_leads_to_the_truth(image, spec):
    blurred = veridical.degradation("gaussian-blur(sigma_px=1)")(image)
    found = descend(veridical.loss(spec), blurred, image, steps=60, lr=0.02)
    assert found.values[-1] < 0.02 * found.values[0]
    assert found.psnr_db[-1] > found.psnr_db[0] + 12
    assert len(found.values) == 60
    assert found.stopped == ""


def test_descending_a_random_loss_draws_anew_and_leaves_its_evaluation_alone(image):
    loss = veridical.loss("spl-c")
    value = evaluator(loss, image)
    blurred = veridical.degradation("gaussian-blur(sigma_px=1)")(image)
    before = value(blurred)
    found = descend(loss, blurred, image, steps=3, lr=1e-6)
    assert max(found.values) > 1.01 * min(found.values)  # the image hardly moves, the network does
    assert value(blurred) == before


def test_descending_keeps_to_the_range_of_an_image(image):
    found = descend(veridical.loss("sharpness-q"), image, image, steps=5, lr=0.2)
    assert found.image.min() == 0
    assert found.image.max() == 1


def test_a_loss_that_learns_does_so_on_the_way(image):
    loss = veridical.loss("lsgan(width=8, lr=0.01, discriminator=patch)")
    before = evaluator(loss, image)(image * 0.5)
    found = descend(loss, image * 0.5, image, steps=3, lr=1e-6)
    assert len(set(found.values)) == 3
    value = evaluator(loss, image)
    assert value(image) == 0  # over that of the truth
    assert value(image * 0.5) != before


def test_descending_ends_at_a_loss_that_is_not_finite(image):
    class Breaks(veridical.losses.Loss):
        left = 2

        def compare(self, prediction, data):
            self.left -= 1
            return (
                ((prediction - data) / max(self.left, 0)).square().mean((1, 2, 3))
                if self.left
                else prediction.sum((1, 2, 3)) * float("inf")
            )

    found = descend(Breaks(), image * 0.9, image, steps=5, lr=0.01)
    assert "not finite at step 1" in found.stopped
    assert found.image.isfinite().all()
    assert len(found.values) == 1


def test_the_gradient_is_white_where_it_is_strongest():
    gradient = torch.zeros(3, 8, 8)
    gradient[:, 2:4, 2:4] = 3.0
    shown = picture_of(gradient)
    assert shown[:, 2:4, 2:4].min() == 1
    assert shown.sum() == 3 * 4
    assert picture_of(torch.zeros(3, 4, 4)).sum() == 0


# The command


def test_a_probe_says_the_same_each_time(folder, tmp_path):
    about = read(folder)
    settings = Settings(image=folder.parent / "in" / "photo0.png", crop=SIZE, steps=6, psnr_db=(20, 30))
    assert probe(["l1", "l2", "spl-a", "sharpness-q"], tmp_path, settings) == about
    for picture in (folder / "images").iterdir():
        assert (tmp_path / "images" / picture.name).read_bytes() == picture.read_bytes()


def test_a_probe_keeps_every_number_and_picture(folder):
    about = read(folder)
    for one in about["losses"]:
        assert set(one["responses"]) == set(DISTORTIONS)
        assert all(len(values) == 2 for values in one["responses"].values())
        assert len(one["descent"]["values"]) == len(one["descent"]["psnr_db"]) == 6
        with Image.open(folder / "images" / f"{one['slug']}.png") as picture:
            assert picture.size == (SIZE, SIZE)
    reached = [level for each in about["distortions"] for level in each["levels"] if "file" in level]
    assert reached
    assert all((folder / "images" / level["file"]).is_file() for level in reached)
    assert all(min(abs(level["psnr_db"] - db) for db in (20, 30)) < 0.05 for level in reached)


def test_the_page_needs_nothing_else(folder):
    page = (folder / "probe.html").read_text()
    for word in ("l1", "spl-a", "sharpness-q", *DISTORTIONS):
        assert word in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "http" not in re.sub(r'http-equiv="[^"]*"|http://www.w3.org/2000/svg', "", page)
    assert "default-src 'none'" in page


def test_a_loss_named_as_markup_stays_text(folder, tmp_path):
    about = read(folder)
    about["losses"][0]["name"] = "<script>alert(1)</script>"
    (tmp_path / "probe.json").write_text(json.dumps(about))
    shutil.copytree(folder / "images", tmp_path / "images")
    assert "<script>alert" not in probe_page.write_page(tmp_path).read_text()


def test_markdown_names_its_pictures_and_they_are_there(folder, tmp_path):
    page = probe_page.write_markdown(folder, tmp_path, "some", "Some losses")
    text = page.read_text()
    pictures = re.findall(r"\]\(([^)]+)\)", text)
    assert {f"some{end}" for end in (".webp", "-gradient.webp", "-loss.svg", "-psnr.svg")} == set(pictures)
    assert all((tmp_path / picture).stat().st_size > 0 for picture in pictures)
    for one in read(folder)["losses"]:
        assert f"| `{one['name']}` |" in text


def test_a_loss_that_cannot_be_had_or_is_too_large_is_named_and_left_out(tmp_path, monkeypatch):
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    photo = write_photographs(tmp_path / "in", 1) / "photo0.png"
    settings = Settings(image=photo, crop=SIZE, steps=0)
    about = probe(["l1", "vgg19", "ms-ssim"], tmp_path / "out", settings)
    assert [one["name"] for one in about["losses"]] == ["l1"]
    assert [each["name"] for each in about["left_out"]] == ["vgg19", "ms-ssim"]
    assert "161 px" in about["left_out"][1]["reason"]
    assert "lpips is not measured" in about["notes"][0]
    assert "vgg19 was left out" in probe_page.write_page(tmp_path / "out").read_text()
    with pytest.raises(NothingToProbe, match="vgg19: the vgg19 weights"):
        probe(["vgg19"], tmp_path / "out", settings)


def test_an_automatic_weight_is_found_at_the_start(tmp_path):
    photo = write_photographs(tmp_path / "in", 1) / "photo0.png"
    about = probe(["l1 + auto*ssim"], tmp_path / "out", Settings(image=photo, crop=SIZE, steps=2))
    (found,) = about["losses"][0]["weights"].values()
    assert found > 0
    assert f"of auto*ssim came to {found:g}" in " ".join(about["notes"])


def test_an_unknown_loss_gets_the_nearest_before_any_work(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'ssim'"):
        probe(["l1", "ssmi"], tmp_path / "out", Settings())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": 4}, "crop of a probe must be at least 16"),
        ({"psnr_db": ()}, "numbers of dB"),
        ({"lr": 0.0}, "lr of a probe"),
    ],
)
def test_impossible_settings_are_errors(wrong, message):
    with pytest.raises(BadOption, match=message):
        Settings(**wrong)


def test_an_image_that_does_not_fit_is_an_error(tmp_path):
    photo = write_photographs(tmp_path / "in", 1) / "photo0.png"
    with pytest.raises(DataError, match="64x56 px, smaller than the crop of 192"):
        probe(["l1"], tmp_path / "out", Settings(image=photo))
    with pytest.raises(BadOption, match="changes the size"):
        probe(["l1"], tmp_path / "out", Settings(image=photo, crop=SIZE, start="bicubic-downscale(scale=2)"))


def test_the_command_prints_both_tables_and_writes_the_page(tmp_path):
    photo = write_photographs(tmp_path / "in", 1) / "photo0.png"
    words = ["probe", "--losses", "l1,0.5*l2 + 0.5*l1", "--image", photo, "--crop", SIZE, "--steps", 3]
    words += ["--psnr", "25", "--out", tmp_path / "out", "--markdown", tmp_path / "md"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    for word in ("blur", "brightness", "0.5*l2 + 0.5*l1", "descended for 3 steps", "probe.html", "losses.md"):
        assert word in result.output
    assert (tmp_path / "out" / "probe.html").is_file()
    command = read(tmp_path / "out")["command"]
    assert command.startswith("veridical probe --losses 'l1, 0.5*l2 + 0.5*l1' --image ")
    assert command.endswith("--crop 32 --psnr 25 --steps 3")


def test_a_card_shows_a_loss_with_its_descent_and_its_bars(folder, tmp_path):
    found = write_cards(folder, tmp_path)
    assert [path.name for path in found] == ["l1.webp", "l2.webp", "spl-a.webp", "sharpness-q.webp"]
    for path in found:
        assert path.stat().st_size <= MOST_BYTES
        card = Image.open(path).convert("RGBA")
        assert card.width == 300
        assert card.height > 2 * SIZE + 8 * 18
    # sharpness-q rewards ringing, and only a rewarded distortion has a bar of the other colour.
    orange = []
    for path in found:
        bars = np.asarray(Image.open(path).convert("RGBA"))[130:, 78:]
        orange.append(int(((bars[..., 0] > 180) & (bars[..., 2] < 90) & (bars[..., 3] > 200)).sum()))
    assert orange[:3] == [0, 0, 0]
    assert orange[3] > 0


def test_a_card_is_of_one_descended_loss(folder, tmp_path):
    about = read(folder)
    for change, message in (
        ({"name": "l1 + 0.1*l2"}, "is a sum"),
        ({"name": "l2(eps=1)"}, "l2, l2"),
        ({"descent": None}, "was not descended"),
    ):
        (tmp_path / "probe.json").write_text(
            json.dumps({**about, "losses": [{**about["losses"][0], **change}, about["losses"][1]]})
        )
        with pytest.raises(DataError, match=message):
            write_cards(tmp_path, tmp_path / "cards")
    assert not (tmp_path / "cards").exists()


def test_the_command_wants_losses_or_a_family():
    for words in (["probe"], ["probe", "--losses", "l1", "--family", "pixel"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert "either --losses" in result.output
    result = CliRunner().invoke(app, ["probe", "--family", "pixle"])
    assert "Did you mean 'pixel'" in result.output
    assert "pixel" in FAMILIES


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "camera"])
def test_sharpness_q_rewards_ringing_and_not_white_noise(name):
    """What its docstring says of it, on photographs."""
    photo = dict(demo_photographs()[1])[name][:, :128, :128]
    value = evaluator(veridical.loss("sharpness-q"), photo)
    assert value(distort(DISTORTIONS["ringing"], photo, 28.0).image) < 0
    assert value(distort(DISTORTIONS["noise"], photo, 28.0).image) > 0
