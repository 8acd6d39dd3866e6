"""Files from strangers: nothing in them runs, memory is bounded, and what cannot be used is an error in words."""

import ast
import io
import json
import os
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import veridical
from tests import fuzz
from tests.photographs import write_photographs
from tests.test_cli import QUICK
from tests.test_cli import veridical as command
from veridical.comparison import run as runs
from veridical.comparison.correlate import read_human
from veridical.comparison.folder import open_folder, read_before
from veridical.comparison.pictures import read as read_picture
from veridical.comparison.published import read_published
from veridical.comparison.report import markdown, read_run, write_report
from veridical.comparison.restore import load_model
from veridical.core.errors import DataError, RecipeError, VeridicalError, WeightsMissing
from veridical.core.files import read_image
from veridical.core.untrusted import parse_npy, printable, read_file, read_npz
from veridical.features import weights
from veridical.features.torch_file import NotData, Reader, read_torch
from veridical.study.design import load_design
from veridical.study.votes import read_votes
from veridical.training.kernels import kernels_in
from veridical.training.recipe import load_recipe

SOURCE = Path(veridical.__file__).parent


# ---- images ----


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colours: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    body = zlib.compress(bytes(height * (1 + width * 3 * bits // 8))) if width * height < 1e6 else zlib.compress(b"\0")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))
        for kind, held in ((b"IHDR", head), *chunks, (b"IDAT", body), (b"IEND", b""))
    )


def tiff(width: int, height: int, bits: int, *more: tuple[int, int, int, int]) -> bytes:
    """A little-endian TIFF of one strip that lies behind the end; more: tag, type, count, value."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 2**31 - 1), *more]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 8)  # a directory of itself


def bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(2**27), 1)
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 2)
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG", progressive=True)
    scans = jpeg.getvalue()
    at = scans.rindex(b"\xff\xda")
    return {
        "60000x60000.png": png(60_000, 60_000),
        "deep.png": png(60_000, 60_000, bits=16),
        "wide.png": png(80_000_000, 1, bits=16),
        "iccp.png": png(8, 8, (b"iCCP", b"x\0\0" + zeros)),
        "ztxt.png": png(8, 8, (b"zTXt", b"x\0\0" + zeros)),
        "itxt.png": png(8, 8, (b"iTXt", b"x\0\1\0\0\0" + zeros)),
        "many.png": png(8, 8, *[(b"zTXt", b"x%d\0\0" % k + zlib.compress(bytes(10**6), 1)) for k in range(100)]),
        "exif.png": png(8, 8, (b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + os.urandom(2**20))),
        "strips.tif": tiff(60_000, 60_000, 8),
        "deep.tif": tiff(60_000, 60_000, 16),
        "tags.tif": tiff(64, 64, 8, (700, 7, 2**32 - 1, 8), (34665, 4, 1, 8), (330, 4, 1, 8)),
        "tiles.tif": tiff(64, 64, 8, (322, 4, 1, 2**31 - 16), (323, 4, 1, 2**31 - 16), (324, 4, 1, 8)),
        "canvas.webp": webp + (2**14 - 1).to_bytes(3, "little") * 2,
        "screen.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x01\x00\x00;",
        "rows.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "scans.jpg": scans[:at] + scans[at:-2] * 300 + scans[-2:],
        "sides.jpg": scans.replace(b"\x00\x40\x00\x40\x03", b"\xff\xff\xff\xff\x03", 1),
    }  # fmt: skip


CHILD = """
import resource, sys
from pathlib import Path
from veridical.core.errors import DataError
from veridical.core.files import read_image
import cv2
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
read_image(Path(sys.argv[2]), channels=None)
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_image(path, channels=None)
        said = "read"
    except DataError as error:
        said = str(error)
    print(f"{path.name}\\t{peak() - before:.0f}\\t{said!a}")
before = peak()
read_image(Path(sys.argv[3]), channels=None)
print(f"whole\\t{peak() - before:.0f}\\t")
"""


def test_bombs_take_no_memory_and_a_photograph_a_known_amount(tmp_path: Path) -> None:
    """Each bomb declares, or unpacks to, hundreds of megabytes. Of a photograph of 16 bits with alpha, 2 megapixels."""
    (tmp_path / "bombs").mkdir()
    for name, data in bombs().items():
        (tmp_path / "bombs" / name).write_bytes(data)
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "whole.png"), np.zeros((1000, 2000, 4), np.uint16))
    files = [str(tmp_path / name) for name in ("bombs", "small.png", "whole.png")]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *files], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == len(bombs()) + 1
    assert {name: grown for name, grown, _ in lines[:-1] if float(grown) > 160} == {}
    said = {name: text for name, _, text in lines}
    for name in ("60000x60000.png", "deep.png", "strips.tif", "deep.tif", "screen.gif", "canvas.webp"):
        assert "is too large" in said[name], said[name]
    assert "scans" in said["scans.jpg"]
    assert float(lines[-1][1]) < 64 * 2  # bytes a pixel


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices have names on POSIX")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)  # a socket's path may have 107 letters
        listening.bind("socket.png")
        for name in ("pipe", "zero", "folder", "circle", "socket"):
            with pytest.raises(DataError, match=f"cannot read .*{name}.png"):
                read_image(tmp_path / f"{name}.png")
    with pytest.raises(OSError, match="no regular file but a pipe"):
        read_file(tmp_path / "pipe.png")
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_file(tmp_path / "large", 10)
    with pytest.raises(DataError, match="cannot read"):
        read_image(Path("a\0.png"))


def test_a_folder_of_a_thousand_links_to_itself_is_walked_once(tmp_path: Path) -> None:
    from veridical.core.files import find_images

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for k in range(1000):
        (tmp_path / f"again{k}").symlink_to(tmp_path)
    assert find_images(tmp_path) == [tmp_path / "a.png"]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_is_read_whatever_the_file_is_called(tmp_path: Path, kind: str) -> None:
    first, second = Image.new("RGB", (6, 5), (255, 0, 0)), Image.new("RGB", (6, 5), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(tmp_path / "x.bmp", kind, save_all=True, append_images=[second], **options)
    found = read_image(tmp_path / "x.bmp")
    assert found.pixels[:, 2, 3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("marker", [True, False])
def test_a_cmyk_photograph_becomes_rgb_with_and_without_adobes_marker(tmp_path: Path, marker: bool) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    data = (tmp_path / "x.jpg").read_bytes()
    if not marker:
        at = data.index(b"\xff\xeeAdobe") if b"\xff\xeeAdobe" in data else data.index(b"\xff\xee")
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        (tmp_path / "x.jpg").write_bytes(data[:at] + data[at + 2 + length :])
    pixels = read_image(tmp_path / "x.jpg").pixels
    assert pixels.shape == (3, 8, 8)
    red, green, blue = pixels.mean(dim=(1, 2)).tolist()
    assert red > 0.9
    assert max(green, blue) < 0.1


def test_kinds_for_which_pillow_runs_other_programs_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was called"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"not an image of a kind that is read \(PNG, JPEG"):
        read_image(tmp_path / "x.png")


# ---- recipes and code ----


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A loss's file that leaves a mark when it is run."""
    path = tmp_path / "canary.py"
    path.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from veridical.losses import Loss\n"
        "class Canary(Loss):\n"
        "    def compare(self, prediction, target):\n"
        "        return (prediction - target).abs().mean(dim=(1, 2, 3))\n"
    )
    return path


@pytest.fixture
def recipe(tmp_path: Path, canary: Path) -> Path:
    data = write_photographs(tmp_path / "photos")
    path = tmp_path / "recipe.toml"
    path.write_text(f'losses = ["l1", "l2 + 0.5*{canary}:Canary"]\n[data]\ntrain = "{data}"\n')
    return path


@pytest.mark.parametrize("how", ["compare", "train", "tune"])
def test_a_recipes_code_is_not_run_unasked(recipe: Path, canary: Path, how: str) -> None:
    result = command(how, recipe, "--out", recipe.parent / "run", *(["--loss", "l1"] if how == "none" else []))
    assert result.exit_code == 2
    assert f"the recipe {recipe} names the loss" in result.output
    assert str(canary.name) in result.output
    assert "--allow-code" in result.output
    assert not (recipe.parent / "ran").exists()


def test_a_recipes_code_runs_when_it_is_allowed_and_what_is_typed_needs_no_leave(recipe: Path, canary: Path) -> None:
    with pytest.raises(RecipeError, match="is code: it would run with all your rights"):
        load_recipe(recipe)
    spec = f"l2 + 0.5*{canary}:Canary"
    assert load_recipe(recipe, allow_code=True).losses[spec] == spec
    assert load_recipe({"losses": [spec]}).losses[spec] == spec
    assert load_recipe(recipe, [f'losses=["{spec}"]']).losses == {spec: spec}
    assert not (recipe.parent / "ran").exists()
    run = recipe.parent / "run"
    options = ["--out", run, *QUICK, "--steps", 2]
    assert command("compare", recipe, *options, "--losses", f"{canary}:Canary", "--out", run).exit_code == 0
    assert (recipe.parent / "ran").exists()
    about = json.loads((run / "comparison.json").read_text())
    assert about["command"].endswith(" --allow-code")
    again = command("compare", run / "recipe.toml", "--out", run)
    assert again.exit_code == 2
    assert "--allow-code" in again.output
    assert command("compare", run / "recipe.toml", "--out", run, "--allow-code").exit_code == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    data = write_photographs(folder / "photos", 5)
    result = command("compare", "--data", data, "--losses", "l1,l2", "--out", folder / "run", *QUICK, "--steps", 2)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def strange(finished: Path, tmp_path: Path, canary: Path) -> Path:
    """A run in which every text names the canary, and texts are hostile."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    for path in (folder / "recipe.toml", folder / "comparison.json", folder / "l1" / "model.json"):
        text = path.read_text().replace('"l1"', json.dumps(f"{canary}:Canary"))
        path.write_text(text.replace(f'"slug": {json.dumps(f"{canary}:Canary")}', '"slug": "l1"'))
    for name in ("rows.csv", "rows.parquet"):
        (folder / name).unlink()
    rows = pl.read_csv(finished / "run" / "rows.csv").with_columns(pl.col("loss").replace("l1", f"{canary}:Canary"))
    rows.write_csv(folder / "rows.csv")
    return folder


def test_nothing_that_reads_a_run_runs_its_code(strange: Path, tmp_path: Path, finished: Path) -> None:
    human = tmp_path / "human.csv"
    human.write_text("method,jnd\n" + "".join(f"{name},1\n" for name in "abcd"))
    out = tmp_path / "out"
    calls = [
        ("report", strange),
        ("report", strange, "--markdown"),
        ("restore", finished / "photos" / "photo0.png", "--run", strange / "l1", "-o", out),
        ("correlate", strange, "--human", human),
        ("study", "new", strange, "--per-pair", 2, "--trials", 1, "--crop", 32),
        ("export", "--run", strange / "l1", "--out", tmp_path / "model.pt2"),
        ("compare", strange / "recipe.toml", "--out", strange),
        ("compare", "--init", strange / "l1", "--data", finished / "photos", "--losses", "l2", "--steps", 1,
         "--crop", 32, "--batch-size", 1, "--out", tmp_path / "fine", "--metrics", "psnr"),
    ]  # fmt: skip
    for call in calls:
        result = command(*call)
        assert result.exception is None or isinstance(result.exception, SystemExit), (call, result.exception)
        assert not (tmp_path / "ran").exists(), call


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5000, "is not TOML"),
        ("a = " + "[" * 40 + "]" * 40, "deeper than 8"),
        ("x." * 3000 + "y = 1", "deeper than 8"),
        ("seed = " + "9" * 5000, "is not TOML"),
        ("[training]\nseed = " + "9" * 400, "less than 20 digits"),
        ("[training]\nlr = " + "9" * 400, "less than 20 digits"),
        ("[training]\nsteps = 1000000000000", "at most 10,000,000"),
        ("[training]\ncrop = 1000000000", "at most 16,384"),
        ("[training]\nbatch_size = 1000000", "pixels with crops of 192"),
        ("[training]\nseeds = 1000000", "at most 1,000"),
        ("[training]\nbetas = [" + "9" * 400 + ", 0.9]", "training.betas must be two numbers"),
        ("losses = [" + ",".join(f'"{k}*l1"' for k in range(2000)) + "]", "names 2000; expected 1000"),
        ("[model]\nwidth = 100000000", "model.width must be less than"),
        ("# " + "x" * 2**20, "larger than 1 MiB"),
        ("losses = ['" + "l1 + " * 4000 + "l1']", None),
        ("\udcff", "is not TOML"),
    ],
)
def test_a_recipe_that_asks_for_the_impossible_is_an_error(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    if message is None:
        assert load_recipe(path)
        return
    with pytest.raises(RecipeError, match=message) as raised:
        load_recipe(path)
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    "spec", [f"l1(a={'(' * 3000 + ')' * 3000})", f"l1(a={'-' * 9000}1)", "l1 + " * 4000 + "l1", "l1(a={[]: 1})"]
)
def test_a_spec_of_any_depth_or_length_is_an_error_in_words(spec: str) -> None:
    with pytest.raises(VeridicalError, match=r"nested too deeply|letters|unknown option"):
        veridical.loss(spec)


# ---- weights and arrays ----


def test_a_tensor_cannot_be_larger_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    for legacy in (False, True):
        torch.save({"a": torch.zeros(1).expand(10**12)}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(DataError, match=r"of the shape \(1000000000000,\) of 1 numbers"):
            read_published(path)
        with pytest.raises(WeightsMissing, match="of the shape"):
            weights.read(path, "the file")
    whole = torch.zeros(2**16)
    torch.save({str(k): whole.view(-1) for k in range(100)}, path)
    with pytest.raises(DataError, match="many times larger than the file"):
        read_published(path)


def test_a_file_of_torch_that_is_packed_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10)}, tmp_path / "net.pth")
    with (
        zipfile.ZipFile(tmp_path / "net.pth") as archive,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in archive.infolist():
            packed.writestr(member.filename, archive.read(member))
    with pytest.raises(DataError, match="its members are compressed"):
        read_published(tmp_path / "packed.pth")


PROTOCOL = b"\x80\x02"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"cos\nsystem\n(X\x01\0\0\0atR.", r"asks for os\.system, which is code"),
        (b"cbuiltins\neval\n(X\x01\0\0\0atR.", "which is code"),
        (b"\x8c\x02os\x8c\x06system\x93.", "which is code"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01tR.", "a tensor of something else"),
        (b"(lq\0h\0" + b"\x86" * 3, "empty stack|too early"),
        (b"N" + b"\x85" * 500 + b"}" + b"(" * 300 + b".", "nested too deeply"),
        (b"}(N\x85N\x85\x86Nu.", "a tuple as a key"),
        (b"X\xff\xff\xff\x7f.", "a text of millions"),
        (b"\x8b\xff\xff\xff\x7f.", "makes no data"),
        (b"\x8a\xff" + bytes(255) + b".", "hundreds of digits"),
        (b"r\xff\xff\xff\xff.", "list index out of range|remembers more"),
        (b"Nr\xff\xff\xff\xff.", "remembers more"),
        (b"ios\nsystem\n.", "makes no data"),
        (b"ccollections\nOrderedDict\n)R}X\x01\0\0\0aNsb" + b"(" * 300, "nested too deeply"),
        (b"N" * 5_000_000, "more objects"),
        (b"(" + b"N" * 20_000 + b"lq\0cbuiltins\nset\nq\x01" + b"h\x01h\0\x85R" * 300 + b".", "more objects"),
    ],
)
def test_a_pickle_that_is_no_data_is_refused(program: bytes, message: str) -> None:
    with pytest.raises((NotData, IndexError), match=message):
        Reader(PROTOCOL + program, 10**6).read()


def test_what_torch_reads_is_read_alike(tmp_path: Path) -> None:
    """Against torch's own reader, of weights alone."""
    layer = torch.nn.BatchNorm2d(3)
    other = {"t": (1, -2, 2.5, None, True, "é", b"x"), "l": [torch.arange(3, dtype=torch.int16), {}], "n": 10**15}
    odd = {"e": torch.empty(0, 3), "b": torch.tensor([True, False]), "h": torch.ones(2, dtype=torch.bfloat16)}
    turned = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)[1:]
    held = {"state_dict": layer.state_dict(), "other": other, **odd, "turned": turned, "s": torch.Size([1, 2])}
    for legacy in (False, True):
        torch.save(held, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        ours, theirs = read_torch(tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=True)
        assert ours.keys() == theirs.keys()
        assert ours["other"]["t"] == theirs["other"]["t"]
        assert ours["other"]["n"] == theirs["other"]["n"]
        assert tuple(ours["s"]) == tuple(theirs["s"])
        pairs = [(ours[key], theirs[key]) for key in ("e", "b", "h", "turned")]
        pairs += [(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items()]
        for our, their in [*pairs, (ours["other"]["l"][0], theirs["other"]["l"][0])]:
            assert our.dtype == their.dtype
            assert our.stride() == their.stride()
            assert torch.equal(our, their)


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy("'<f8'", "(1000000000000,)"), "says to have the shape"),
        (npy("'<f8'", "(2,)", bytes(8)), "says to have the shape"),
        (npy("'<f8'", "(-1,)"), "says to have the shape"),
        (npy("'|O'", "(1,)", bytes(8)), "no plain numbers; allow_pickle is never set"),
        (npy("[('a', '<f8')]", "(1,)", bytes(8)), "no plain numbers"),
        (npy("'<U4'", "(1,)", bytes(16)), "no plain numbers"),
        (npy("__import__('os')", "()"), "header is damaged"),
        (npy("'<f8'", "(" * 90 + ")" * 90), "header is damaged|shape"),
        (b"\x93NUMPY\x01\0\xff\xff" + bytes(70_000), "header is damaged"),
        (b"hello", "no array of NumPy"),
    ],
)
def test_an_array_says_no_more_than_it_holds(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_npy(data)
    (tmp_path / "k.npy").write_bytes(data)
    with pytest.raises(DataError, match="cannot read the kernel"):
        kernels_in(tmp_path, ["k"])


def test_arrays_are_read_as_numpy_reads_them() -> None:
    for array in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.ones((3, 2), ">i2")),
        np.float32(2.5),
        np.ones((0, 3)),
    ):
        data = io.BytesIO()
        np.save(data, array)
        found = parse_npy(data.getvalue())
        assert found.dtype == np.asarray(array).dtype
        assert np.array_equal(found, array)


def test_a_zip_of_arrays_that_unpacks_to_more_than_is_read_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    with pytest.raises(ValueError, match="says to unpack to"):
        read_npz(tmp_path / "a.npz", 10**6)
    assert read_npz(tmp_path / "a.npz")["a"].shape == (10**6,)


def model_folder(folder: Path, options: dict[str, object], **tensors: torch.Tensor) -> Path:
    about = {"model": {"name": "dncnn", "options": options}}
    (folder / "model.json").write_text(json.dumps(about))
    state = veridical.model("dncnn", depth=3, width=4).state_dict()
    save_file({**state, **tensors}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3, "width": 8000}, "does not fit .* that has 2,305,888,020 bytes"),
        ({"depth": 10**9, "width": 4}, "numbers up to 8192"),
        ({"depth": 3, "width": [1] * 1000}, "width of a model"),
        ({"depth": "x", "width": 4}, "cannot be made"),
        ({"depth": 4, "width": 4}, "does not fit"),
    ],
)
def test_a_model_that_is_larger_than_its_file_is_not_made(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_model(model_folder(tmp_path, options))


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    key = next(iter(veridical.model("dncnn", depth=3, width=4).state_dict()))
    whole = veridical.model("dncnn", depth=3, width=4).state_dict()[key]
    folder = model_folder(tmp_path, {"depth": 3, "width": 4}, **{key: torch.full_like(whole, float("nan"))})
    with pytest.raises(DataError, match="not finite"):
        load_model(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,
        struct.pack("<Q", 2) + b"{}" + bytes(100),
        struct.pack("<Q", 10**8 + 1) + b"{",
        *(
            struct.pack("<Q", len(text)) + text + bytes(16)
            for text in (
                b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,16]}}',
                b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
                b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
                b'{"a":{"dtype":"X99","shape":[4],"data_offsets":[0,16]}}',
                b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1600]}}',
                b'{"__metadata__":{"a":1}}',
                b"[" * 100_000,
            )
        ),
    ],
)
def test_a_lying_header_of_safetensors_is_an_error(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(header)
    with pytest.raises(WeightsMissing, match="not a whole safetensors file"):
        weights.read(tmp_path / "a.safetensors", "the file")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 10**6}, "hidden_size 1000000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ([], "no table"),
    ],
)
def test_a_tower_larger_than_any_is_not_made(tmp_path: Path, config: object, message: str) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsMissing, match=message):
        veridical.loss("fmlc", weights=str(tmp_path))


def test_a_towers_pickle_is_not_read(tmp_path: Path, clip_folder: Path) -> None:
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsMissing, match=r"safetensors"):
        veridical.loss("fmlc", weights=str(tmp_path))


def test_a_list_of_addresses_is_no_film(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    from veridical.training.video import Clip, read_frames

    (tmp_path / "x.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    with pytest.raises(DataError, match="cannot be read as a video"):
        next(read_frames(Clip("x", tmp_path / "x.mp4")))


# ---- tables ----


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (read_human, b"image,mos\n" + b"x" * 200_000 + b",1\n"),
        (read_human, b"image,mos\na," + b"9" * 400),
        (read_human, b"\xff\xfe"),
        (read_votes, b"x" * 200_000 + b",a,b,1\n"),
        (read_votes, b"1,2,3,1\n" + b"\0" * 9),
        (read_votes, b"\xff\xfe"),
    ],
)
def test_a_hostile_table_is_an_error_that_names_it(tmp_path: Path, read: Callable[[Path], object], data: bytes) -> None:
    (tmp_path / "table.csv").write_bytes(data)
    with pytest.raises(DataError, match=r"table\.csv"):
        read(tmp_path / "table.csv")


def test_votes_of_more_methods_than_a_table_holds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_text("".join(f"i,m{k},n{k},1\n" for k in range(600)))
    with pytest.raises(DataError, match="names 1,200 methods"):
        read_votes(tmp_path / "votes.csv")


def test_rows_of_a_run_are_counted_before_they_are_read(strange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pl.read_csv(strange / "rows.csv")
    monkeypatch.setattr(runs, "MOST_ROWS", len(rows) - 2)
    with pytest.raises(DataError, match="more than"):
        runs.read_rows(strange)
    rows.write_parquet(strange / "rows.parquet")
    with pytest.raises(DataError, match="says to have"):
        runs.read_rows(strange)


@pytest.mark.parametrize("change", ["cast", "cut", "nested"])
def test_rows_of_another_kind_are_an_error(strange: Path, change: str) -> None:
    rows = pl.read_csv(strange / "rows.csv")
    if change == "nested":
        rows = rows.with_columns(pl.Series("value", [[1.0]] * len(rows)))
    elif change == "cast":
        rows = rows.with_columns(pl.lit("x").alias("seed"))
    rows.write_parquet(strange / "rows.parquet")
    if change == "cut":
        data = (strange / "rows.parquet").read_bytes()
        (strange / "rows.parquet").write_bytes(data[: len(data) // 2] + data[-40:])
    with pytest.raises(DataError, match="the rows of"):
        runs.read_rows(strange)


# ---- run folders ----


def changed(folder: Path, **values: object) -> Path:
    path = folder / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize("slug", ["../../etc", "/etc/passwd", "a/b", "..", "", "A", "a\n", "-a", "x" * 200, 3, None])
@pytest.mark.parametrize("where", ["losses", "images"])
def test_a_folder_that_leads_out_of_the_run_is_refused(strange: Path, slug: object, where: str) -> None:
    about = json.loads((strange / "comparison.json").read_text())
    about[where][0]["slug"] = slug
    changed(strange, **{where: about[where]})
    for read in (read_run, read_before):
        with pytest.raises(DataError, match=rf"{where}\.0\.slug is"):
            read(strange)
    result = command("study", "new", strange, "--per-pair", 2)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "values",
    [
        {"steps": "many"}, {"machine": [1]}, {"dataset": "x"}, {"models": [3]}, {"init": 3}, {"notes": "x"},
        {"seeds": [1e400]}, {"losses": [{"name": ["a"], "slug": "a"}]}, {"losses": [{"name": "a\x1b", "slug": "a"}]},
        {"losses": [{"name": "a", "slug": "a", "cost": {"x": "y"}}]},
        {"metrics": [{"name": "psnr", "higher_is_better": 1}]},
        {"images": [1]}, {"images": {"a": 1}}, {"crop": 2**70}, {"steps": -1}, {"version": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_values_of_other_types_in_a_run_are_an_error(strange: Path, values: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"comparison\.json: "):
        read_run(changed(strange, **values))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"losses": ' + "[" * 100_000, "\udcff", "9" * 10_000, "null"])
def test_json_of_any_depth_is_an_error(strange: Path, text: str) -> None:
    (strange / "comparison.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError):
        read_run(strange)
    (strange / "l1" / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError):
        load_model(strange / "l1")


def test_links_that_lead_out_of_a_run_are_not_followed(strange: Path, tmp_path: Path) -> None:
    truth = next((strange / "images" / "truth").glob("*.png"))
    (tmp_path / "private").mkdir()
    truth.rename(tmp_path / "private" / "own.png")
    truth.symlink_to(tmp_path / "private" / "own.png")
    with pytest.raises(DataError, match="outside of the run"):
        read_picture(truth)
    with pytest.raises(DataError, match="outside of the run"):
        write_report(read_run(strange))
    (strange / "l2").rename(tmp_path / "private" / "l2")
    (strange / "l2").symlink_to(tmp_path / "private" / "l2")
    with pytest.raises(RecipeError, match=r"l2 is a link to .*, outside of the run"):
        open_folder(load_recipe(strange / "recipe.toml", allow_code=True), strange)
    truth.unlink()
    (tmp_path / "private" / "own.png").rename(truth)
    (tmp_path / "linked").symlink_to(strange)  # a run that is itself a link is in its place
    assert read_picture(tmp_path / "linked" / "images" / "truth" / truth.name).size


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


PAYLOAD = "</script></title><evil onclick=x>\"'><img src=x onerror=evil()>{{7*7}}`|"


def _harmless(page: str, scripts: int) -> None:
    tags = _Tags(page)
    assert not [tag for tag, _ in tags.found if tag == "evil"]
    assert not [attrs for _, attrs in tags.found if any(name.startswith("on") for name in attrs)]
    assert not [attrs for tag, attrs in tags.found if tag in ("img", "script") and attrs.get("src") == "x"]
    assert len(tags.scripts) == scripts
    assert "evil" in page  # the payload stands there, as text
    assert "49`" not in page


def test_no_text_of_a_run_becomes_a_tag_of_the_report(strange: Path) -> None:
    about = json.loads((strange / "comparison.json").read_text())
    names = {one["name"]: f"{one['name']}{PAYLOAD}" for one in about["losses"]}
    images = {one["name"]: f"{one['name']}{PAYLOAD}" for one in about["images"]}

    def hostile(value: object) -> object:
        if isinstance(value, dict):
            kept = ("slug", "name", "label", "status", "range")
            return {key: value[key] if key in kept else hostile(value[key]) for key in value}
        if isinstance(value, list):
            return [hostile(each) for each in value]
        return f"{value}{PAYLOAD}" if isinstance(value, str) else value

    about = hostile(about)
    for one in about["losses"]:
        one["name"] = names[one["name"]]
    for one in about["images"]:
        one["name"] = images[one["name"]]
    about["losses"].append({"name": f"failed{PAYLOAD}", "slug": "failed", "status": "failed", "error": PAYLOAD})
    metric = {"name": f"odd{PAYLOAD}", "label": f"odd{PAYLOAD}", "higher_is_better": True, "unit": PAYLOAD}
    about["metrics"].append(metric)
    (strange / "comparison.json").write_text(json.dumps(about))
    (strange / "recipe.toml").write_text(f"# {PAYLOAD}\n")
    rows = pl.read_csv(strange / "rows.csv").with_columns(
        pl.col("loss").replace(names), pl.col("image").replace(images)
    )
    odd = rows.filter(pl.col("metric") == "psnr").with_columns(pl.lit(metric["label"]).alias("metric"))
    pl.concat([rows, odd]).write_csv(strange / "rows.csv")
    run = read_run(strange)
    page = write_report(run).read_text()
    _harmless(page, scripts=page.count('<script type="application/json" data-frames') + 2)
    for line in markdown(run).splitlines():
        assert "<evil" not in line
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 4 + len(run.analysis.values.columns) - 1


def test_no_name_steers_the_terminal(strange: Path) -> None:
    assert printable("a\x1b[2Jb\x9bc\rd\u202ee\nf\tg é") == "a\\x1b[2Jb\\x9bc\\rd\\u202ee\nf\tg é"
    about = json.loads((strange / "comparison.json").read_text())
    about["losses"].append({"name": "bad", "slug": "bad", "status": "failed", "error": "\x1b]0;owned\x07\x1b[2J"})
    result = command("report", changed(strange, losses=about["losses"], notes=["\x1b[31mnote"], task="\x1b[1mx"))
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\\x1b" in result.output
    said = command("report", "\x1b[2Jnowhere")
    assert "\x1b" not in said.output


# ---- the study ----


@pytest.mark.parametrize("file", ["../../../etc/passwd", "/etc/passwd", "a.webp", "0" * 16 + ".webp/../x", 3])
def test_a_study_names_its_own_images_alone(tmp_path: Path, file: object) -> None:
    design = json.loads(fuzz._study())
    design["files"][0]["0"] = file
    (tmp_path / "study.json").write_text(json.dumps(design))
    with pytest.raises(DataError, match="is not a study's design"):
        load_design(tmp_path)


def test_the_study_serves_no_link(tmp_path: Path) -> None:
    testing = pytest.importorskip("fastapi.testclient")
    from veridical.study.server import create_app

    (tmp_path / "study.json").write_bytes(fuzz._study())
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").write_text("secret")
    names = json.loads(fuzz._study())["files"][0].values()
    for name in names:
        (tmp_path / "images" / name).symlink_to(tmp_path / "secret")
    with testing.TestClient(create_app(tmp_path)) as client:
        state = client.post("/api/begin", json={"consent": True}).json()
        answer = client.get(f"/image/{state['trials'][0]}/left")
        assert answer.status_code == 404
        assert "secret" not in answer.text


# ---- no pickle ----

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
    "pty",
}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "torch.load", "torch.hub.load", "os.system", "os.popen", "np.load", "numpy.load",
    "dist.all_gather_object", "torch.distributed.all_gather_object", "torch.distributed.broadcast_object_list",
    "pl.read_database", "pd.read_pickle", "np.fromfile",
}  # fmt: skip
# The file of a loss that the user has named, or has allowed.
RUNS_CODE = {
    ("losses/__init__.py", "spec.loader.exec_module"),
    ("benchmark/migration.py", "exec"),  # the calls of side_by_side.py alone
    ("benchmark/migration.py", "eval"),
}


def test_there_is_no_pickle_and_nothing_that_runs_text() -> None:
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        where = file.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                found += [(where, name) for name in modules if name.partition(".")[0] in FORBIDDEN_MODULES]
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            ends = ("exec_module", "all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list")
            if name in FORBIDDEN_CALLS or name.endswith(ends):
                found.append((where, name))
            for keyword in node.keywords:
                told = ast.unparse(keyword.value)
                unsafe = {"allow_pickle": "True", "shell": "True", "weights_only": "False", "trust_remote_code": "True"}
                if unsafe.get(str(keyword.arg)) == told:
                    found.append((where, f"{name}({keyword.arg}={told})"))
    assert set(found) == RUNS_CODE


# ---- fuzzing ----


@pytest.mark.parametrize("name", [name for name in fuzz.READERS if name not in ("comparison", "rows", "parquet")])
def test_no_mutated_file_makes_a_reader_fail_otherwise(name: str) -> None:
    """A few of them at each call, the same ones; `python -m tests.fuzz` gives as many as you like."""
    for number, data in enumerate(fuzz.cases(name, seed=7)):
        if number >= (20 if name == "request" else 60):
            break
        fuzz.check(fuzz.READERS[name], data, limit_s=300)


def test_no_mutated_run_makes_the_report_fail_otherwise() -> None:
    for name in ("comparison", "rows", "parquet"):
        for number, data in enumerate(fuzz.cases(name, seed=7)):
            if number >= 8:
                break
            fuzz.check(fuzz.READERS[name], data, limit_s=300)


hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
some = hypothesis.settings(
    max_examples=150, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
words = st.sampled_from(
    ["l1", "l2", "ssim", "auto", "*", "+", "(", ")", "=", ",", "size", "1e9", "-1", "'", "[", "{", " "]
)


@some
@hypothesis.given(st.one_of(st.text(max_size=60), st.lists(words, max_size=20).map("".join)))
def test_any_text_is_a_spec_or_an_error_in_words(text: str) -> None:
    fuzz.check(fuzz.READERS["spec"], text.encode("utf-8", "replace"), limit_s=300)


leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@some
@hypothesis.given(st.sampled_from(["comparison", "before", "study", "checkpoint", "model.json"]), st.data())
def test_any_json_in_the_place_of_a_value_is_read_or_an_error_in_words(name: str, data: object) -> None:
    whole = json.loads(fuzz.READERS[name].seeds()[0])
    at = whole
    for _ in range(data.draw(st.integers(0, 3))):  # type: ignore[attr-defined]
        inside = [
            each for each in (at.values() if isinstance(at, dict) else at) if isinstance(each, dict | list) and each
        ]
        if not inside:
            break
        at = data.draw(st.sampled_from(inside))  # type: ignore[attr-defined]
    key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))  # type: ignore[attr-defined]
    at[key] = data.draw(trees)  # type: ignore[attr-defined]
    target = fuzz.READERS["before" if name == "comparison" else name]
    fuzz.check(target, json.dumps(whole).encode("utf-8", "surrogatepass"), limit_s=300)
