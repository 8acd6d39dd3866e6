"""Give the readers of files that may come from strangers broken and hostile files, and see what comes out.

    python -m tests.fuzz image --cases 10000                     # seeds that are valid, mutated
    python -m tests.fuzz all --seconds 60 --engine atheris       # guided by coverage, where atheris is installed

What may come out of a reader: a value, or a VeridicalError. Anything else is a finding: another exception, a warning,
more than --limit seconds, or more than --memory MiB beyond what the process had. The case is then written to
fuzz-findings/READER-HASH, and `python -m tests.fuzz READER --file PATH` repeats it.
"""

import argparse
import contextlib
import hashlib
import io
import json
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from safetensors.torch import save as safetensors_of

if "atheris" in sys.argv:  # it must see what is imported
    import atheris

    _seen: contextlib.AbstractContextManager[Any] = atheris.instrument_imports(include=["veridical"])
else:
    _seen = contextlib.nullcontext()
with _seen:
    from veridical.comparison.correlate import read_human
    from veridical.comparison.folder import read_before, read_json
    from veridical.comparison.published import read_published
    from veridical.comparison.report import markdown, read_run, verdict
    from veridical.comparison.restore import load_model
    from veridical.core import catalog
    from veridical.core.errors import VeridicalError
    from veridical.core.files import read_image
    from veridical.features import weights
    from veridical.features.adapter import Adapter
    from veridical.features.forest import read_forests
    from veridical.features.libsvm import read_regression
    from veridical.features.mdf import read as read_mdf
    from veridical.features.mdf_convert import read as read_released
    from veridical.features.torch_file import NotData, read_arrays
    from veridical.study.design import load_design
    from veridical.study.votes import read_votes
    from veridical.training import checkpoint
    from veridical.training.kernels import kernels_in
    from veridical.training.recipe import load_recipe

LIMIT_S = 20.0
MEMORY_MIB = 1536


@dataclass(frozen=True)
class Target:
    """A reader. read: what it does with a file. seeds: valid files. name: how the file is called. words: what a
    mutation may put in. allowed: errors that are documented besides VeridicalError."""

    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    name: str
    words: tuple[bytes, ...] = ()
    allowed: tuple[type[BaseException], ...] = ()


# ---- valid files to begin with ----


def _images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    made = []
    exif = Image.Exif()
    exif[274] = 6
    exif[271] = "camera"
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image
        for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
            data = io.BytesIO()
            with contextlib.suppress(OSError, KeyError, ValueError):
                image.save(data, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
                made.append(data.getvalue())
    frames = [Image.fromarray(pixels[..., :3]), Image.fromarray(255 - pixels[..., :3])]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = io.BytesIO()
        frames[0].save(data, kind, save_all=True, append_images=frames[1:])
        made.append(data.getvalue())
    for suffix in (".png", ".tif"):
        from veridical.core.files import _encode_deep_png, _encode_deep_tiff

        deep = pixels.astype(np.uint16) * 257
        made += [
            _encode_deep_png(deep[..., :channels], b"profile", None, None)
            if suffix == ".png"
            else _encode_deep_tiff(deep[..., :channels], None, None)
            for channels in (2, 3, 4)
        ]
    for compression in ("tiff_lzw", "tiff_jpeg", "packbits", "tiff_deflate"):
        data = io.BytesIO()
        frames[0].save(data, "TIFF", compression=compression)
        made.append(data.getvalue())
    data = io.BytesIO()
    Image.fromarray(np.float32(pixels[..., 0])).save(data, "TIFF")
    progressive = io.BytesIO()
    frames[0].save(progressive, "JPEG", progressive=True)
    return [*made, data.getvalue(), progressive.getvalue()]


RECIPE = b"""task = "deblur"
losses = {mine = "l1 + 0.2*ssim", b = "auto(ratio=0.1)*l2"}
metrics = ["psnr(channel=y, border=4)", "ssim"]
degradation = "box-blur(size=5) + gaussian-noise(sigma_8bit=(0, 10))"
[data]
train = "photos"
pairs_evaluate = ["a", "b"]
[model]
name = "unet(levels=2)"
width = 16
[training]
steps = 20
batch_size = 2
crop = 32
lr = 5e-4
betas = [0.9, 0.99]
stages = [1, 0.5]
[small.training]
steps = 3
"""


def _specs() -> list[bytes]:
    return [
        b"0.8*l2 + 0.2*charbonnier(eps=1e-3)",
        b"auto(ratio=0.1)*l1 + ssim(size=11)",
        b"spl-a(seed=3)",
        b"tv + edge + gradient(order=1)",
        b"focal-frequency(alpha=1.5)",
        b"gan(width=8, seed=2)",
        b"ms-ssim-l1(scales=3)",
    ]


def _states() -> list[dict[str, Any]]:
    convolution = torch.nn.Conv2d(3, 2, 3)
    table = {"state_dict": convolution.state_dict(), "epoch": 3, "note": "x"}
    whole = torch.arange(6.0)
    shared = {"a": whole[:2], "b": whole.reshape(2, 3).t(), "c": torch.nn.Parameter(whole), "d": torch.tensor(3)}
    return [convolution.state_dict(), table, shared]


def _torch_files() -> list[bytes]:
    made = []
    for state in (*_states(), [torch.nn.Conv2d(1, 1, 1)]):
        for zipped in (True, False):
            data = io.BytesIO()
            torch.save(state, data, _use_new_zipfile_serialization=zipped)
            made.append(data.getvalue())
    return made


def _discriminators() -> dict[str, torch.Tensor]:
    tensors, inputs = {}, 3
    for layer in ("head", "body.block1", "body.block2", "body.block3"):
        tensors |= {f"0.{layer}.conv.weight": torch.ones(2, inputs, 3, 3), f"0.{layer}.conv.bias": torch.zeros(2)}
        inputs = 2
    return tensors | {"0.tail.weight": torch.ones(1, 2, 3, 3), "0.tail.bias": torch.zeros(1)}


def _safetensors() -> list[bytes]:
    settings = {"base": {"network": "vgg16", "tap": "relu1_2"}, "kind": "token-wise", "channels": 2, "width": 2}
    notes = {"format": "veridical adapter 1", "settings": json.dumps(settings | {"positions": 1, "pool": 0})}
    layers = {f"layers.{k}.{part}": torch.ones(2, 2) if part == "weight" else torch.ones(2)
              for k in (0, 3, 6) for part in ("weight", "bias")}  # fmt: skip
    for k in (1, 4):
        layers |= {f"layers.{k}.{part}": torch.ones(2) for part in ("weight", "bias", "running_mean", "running_var")}
        layers[f"layers.{k}.num_batches_tracked"] = torch.tensor(0)
    mixed = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int8), "c": torch.ones(1, dtype=torch.bfloat16)}
    return [
        safetensors_of(_discriminators(), {"range": "0..1", "format": "veridical mdf 1"}),
        safetensors_of(layers, notes),
        safetensors_of(mixed),
    ]


def _npz() -> list[bytes]:
    made = []
    for save in (np.savez, np.savez_compressed):
        data = io.BytesIO()
        save(data, mu_pris_param=np.ones((1, 36)), cov_pris_param=np.eye(36))
        made.append(data.getvalue())
    return made


def _npy() -> list[bytes]:
    made = []
    for array in (np.ones((3, 5)), np.asfortranarray(np.ones((4, 2), np.float32)), np.ones(3, np.int16)):
        data = io.BytesIO()
        np.save(data, array)
        made.append(data.getvalue())
    return made


REGRESSION = (
    b"svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 3\nrho -30.5\nprobA 5.7\nSV\n"
    b"1 1:0.5 2:1 \n-2.5 3:1e-3 \n7 \n"
)


def _mat() -> list[bytes]:
    from scipy import io as matlab

    from tests.made_up_models import a_model

    made = []
    for compressed in (True, False):
        data = io.BytesIO()
        matlab.savemat(data, {"model": a_model()}, do_compression=compressed)
        made.append(data.getvalue())
    return made


VOTES = (
    b"image,method_1,method_2,result,rater,screening\na,x,y,1,r1,\nb,x,z,2,r2,\nb,z,y,2,r2,\nb,x,y,1,r2,\nb,x,y,1,r2,\nc,,,1,r1,1\n",
    b"1;2;1;2\n3;1;2;1\n",
    b"Image ID\tMethod 1\tMethod 2\tResult\na\tb\tc\t1\n",
)
HUMAN = (b"image,mos,ref\na.png,3.5,r\nb.png,1,r\nc.png,2,s\nd.png,4,s\n", b"method,jnd\nl1,0\nl2,1.5\n")


def _about() -> dict[str, Any]:
    return {
        "version": "1",
        "task": "deblur",
        "steps": 20,
        "seeds": [0],
        "batch_size": 2,
        "crop": 32,
        "command": "x",
        "machine": {"cpu": "x", "cores": 2},
        "dataset": {"train": "a", "digest": "d"},
        "model": {"name": "unet", "options": {"width": 4}, "parameters": 10},
        "init": {"folder": "runs/x", "sha256": "ab", "loss": "l1", "steps": 3},
        "notes": ["a note"],
        "losses": [
            {"name": name, "slug": name, "spec": name, "status": "done", "seconds_per_step": 0.1, "optimises": ["psnr"],
             "cost": {"seconds_per_megapixel": 1.0}, "weight_hashes": {"vgg16": "ab"}}
            for name in ("l1", "l2")
        ],
        "metrics": [{"name": "psnr", "label": "psnr", "higher_is_better": True, "unit": "dB", "range": "[0, inf]"}],
        "images": [{"name": name, "slug": name, "width": 8, "height": 8} for name in "abcd"],
    }  # fmt: skip


def _rows() -> pl.DataFrame:
    values = np.random.default_rng(0).normal(30, 1, (3, 4))
    return pl.DataFrame(
        [
            {"image": image, "loss": loss, "seed": 0, "metric": "psnr", "value": float(values[i, j])}
            for i, loss in enumerate(("input", "l1", "l2"))
            for j, image in enumerate("abcd")
        ]
    )


def _run_around(folder: Path, changed: str) -> Path:
    """A run whose file `changed` is left as it is."""
    if changed != "comparison.json":
        (folder / "comparison.json").write_text(json.dumps(_about()))
    if not changed.startswith("rows"):
        (folder / "rows.csv").write_text(_rows().write_csv())
    if changed != "recipe.toml":
        (folder / "recipe.toml").write_bytes(RECIPE)
    (folder / "l1").mkdir(exist_ok=True)
    if changed != "training.csv":
        (folder / "l1" / "training.csv").write_text("step,total\n1,2.5\n2,2\n3,1\n")
    return folder


def _read_run(path: Path) -> object:
    run = read_run(_run_around(path.parent, path.name))
    from veridical.comparison.report import write_report

    verdict(run)
    markdown(run)
    return write_report(run)


def _parquet() -> list[bytes]:
    made = []
    for compression in ("zstd", "uncompressed"):
        data = io.BytesIO()
        _rows().write_parquet(data, compression=compression)
        made.append(data.getvalue())
    return made


def _study() -> bytes:
    files = {key: f"{number:016x}.webp" for number, key in enumerate(("reference", "ruined", "0", "1"))}
    return json.dumps(
        {"title": "t", "contact": "", "methods": ["a", "b"], "images": ["i"], "per_pair": 2, "pairs": "full",
         "trials": 1, "screening": 0, "seed": 0, "created": "now", "comparisons": [[0, 0, 1], [0, 1, 0]],
         "files": [files]}
    ).encode()  # fmt: skip


MODEL = json.dumps(
    {"model": {"name": "dncnn", "options": {"channels": 3, "depth": 3, "width": 4}}, "enlarge": 1, "loss": "l1",
     "optimises": ["psnr"], "steps": 3}
).encode()  # fmt: skip


def _read_model(path: Path) -> object:
    from veridical.models import DnCNN

    if path.name == "model.json":
        (path.parent / "model.safetensors").write_bytes(safetensors_of(DnCNN(depth=3, width=4).state_dict()))
    else:
        (path.parent / "model.json").write_bytes(MODEL)
    return load_model(path.parent)


def _a_model() -> list[bytes]:
    from veridical.models import DnCNN

    return [safetensors_of(DnCNN(depth=3, width=4).state_dict())]


def _read_checkpoint(path: Path) -> object:
    step = path.parent / "step-00000003"
    tensors = {name: safetensors_of({"a": torch.ones(2)}) for name in ("model", "state")}
    step.mkdir(exist_ok=True)
    for name, data in tensors.items():
        (step / f"{name}.safetensors").write_bytes(data)
    (step / "state.json").write_bytes(path.read_bytes())
    found, _ = checkpoint.load(path.parent)
    return found and checkpoint.check_fingerprint(found, found.fingerprint, path.parent)


def _state() -> bytes:
    digest = hashlib.sha256(safetensors_of({"a": torch.ones(2)})).hexdigest()
    return json.dumps(
        {"step": 3, "seconds": 1.5, "fingerprint": {"loss": "l1"}, "sha256": {"model": digest, "state": digest}}
    ).encode()


def _arrays() -> list[bytes]:
    layers = {"Net": {"Conv_0": {"kernel": np.ones((3, 3, 2, 2), np.float32), "bias": np.zeros(2, np.float32)}}}
    return [pickle.dumps(layers, protocol=protocol) for protocol in (2, 3, 4)]


def _read_spec(path: Path) -> object:
    text = path.read_bytes().decode("utf-8", "replace")
    if ".py" in text or "/" in text or "weights" in text:
        return None
    terms = catalog.parse(text)
    for term in terms:
        str(term)
    import veridical

    if sum(len(str(term)) for term in terms) < 400 and not any(_large(term.options) for term in terms):
        return veridical.loss(text)
    return None


def _large(options: Any) -> bool:
    """Whose networks would be of gigabytes: that is the caller's to ask for."""
    return any(isinstance(value, int | float) and abs(value) > 64 for value in options.values())


def _read_published(path: Path) -> object:
    return read_published(path)


def _read_weights(path: Path) -> object:
    found = weights.read(path, "the file")
    for reader in (lambda: read_mdf(path=path), lambda: Adapter.load(path)):
        with contextlib.suppress(VeridicalError):
            reader()
    return found


def _read_recipe(path: Path) -> object:
    from veridical.training.recipes import read_values

    with contextlib.suppress(VeridicalError):
        load_recipe(read_values(path, "small"), file=path)
    return load_recipe(read_values(path), file=path).to_toml()


def _ask_study(path: Path) -> object:
    """One request to the study's page: a line METHOD PATH COOKIE, then the body."""
    global _client
    if _client is None:
        from fastapi.testclient import TestClient

        from veridical.study.server import create_app

        folder = Path(tempfile.mkdtemp(prefix="fuzz-study-"))
        (folder / "study.json").write_bytes(_study())
        _client = TestClient(create_app(folder), raise_server_exceptions=True)
    head, _, body = path.read_bytes().partition(b"\n")
    words = [*head.decode("latin-1").split(" "), "", "", ""][:3]
    if words[0] not in ("GET", "POST", "PUT", "DELETE") or not words[1].startswith("/"):
        return None
    headers = {"content-type": "application/json"}
    if words[2].isprintable() and words[2].isascii():
        headers["cookie"] = words[2]
    from starlette.testclient import httpx  # whichever it was made for

    try:
        answer = _client.request(words[0], words[1], content=body, headers=headers)
    except (httpx.InvalidURL, UnicodeError):
        return None
    assert answer.status_code < 500, answer.status_code
    assert b"root:" not in answer.content
    return answer


_client: Any = None
_TOML = (b"[[", b"]]", b'"""', b"=", b"{", b"}", b"1e999", b"nan", b"-inf", b"9" * 50, b"[" * 50, b"a.b.c", b"true")
_JSON = (b"null", b"NaN", b"-1", b"1e999", b"[]", b"{}", b'"../../etc/passwd"', b'"\\u001b]0;x"', b"[" * 50, b"9" * 30)
_PKL = (b"c", b"R", b"b", b"(", b"t", b"\x81", b"\x8a", b"\x94", b"cos\nsystem\n", b"}", b"]", b"e", b"u", b"h\x00")
_TORCH: dict[str, Any] = {"seeds": _torch_files, "name": "a.pth", "words": _PKL}
_CSV = (b",", b";", b"\t", b'"', b"\0", b"\r", b"\n", b"=1+1", b"\xff", b"nan", b"inf", b"1e999", b"\xef\xbb\xbf")

READERS: dict[str, Target] = {
    "image": Target(
        lambda path: read_image(path, channels=None), _images, "a.png", (b"IHDR", b"\xff\xda", b"\xff\xc0")
    ),
    "recipe": Target(_read_recipe, lambda: [RECIPE], "recipe.toml", _TOML),
    "spec": Target(
        _read_spec, _specs, "spec.txt", (b"(", b")", b"+", b"*", b"auto", b"1e9", b"-", b"'", b"{", b"None")
    ),
    "safetensors": Target(_read_weights, _safetensors, "a.safetensors", _JSON),
    "pth": Target(_read_published, **_TORCH),
    "weights": Target(_read_weights, **_TORCH),
    "released": Target(read_released, **_TORCH),
    "arrays": Target(lambda path: read_arrays(path.read_bytes()), _arrays, "a.pkl", _PKL, (NotData,)),
    "npz": Target(lambda path: weights.load("niqe", path=path), _npz, "a.npz", (b"descr", b"|O", b"(1,)", b"<f8")),
    "kernels": Target(lambda path: kernels_in(path.parent, ["a"]), _npy, "a.npy", (b"|O", b"(1,)", b"<f8", b"9" * 12)),
    "libsvm": Target(lambda path: read_regression(path, 36), lambda: [REGRESSION], "model", (b"1:", b"nan", b"1e999")),
    "forest": Target(lambda path: read_forests(path, (18, 45, 75)), _mat, "model.mat"),
    "votes": Target(read_votes, lambda: list(VOTES), "votes.csv", _CSV),
    "human": Target(read_human, lambda: list(HUMAN), "mos.csv", _CSV),
    "comparison": Target(_read_run, lambda: [json.dumps(_about()).encode()], "comparison.json", _JSON),
    "rows": Target(_read_run, lambda: [_rows().write_csv().encode()], "rows.csv", _CSV),
    "parquet": Target(_read_run, _parquet, "rows.parquet"),
    "before": Target(
        lambda path: (read_before(path.parent), read_json(path)),
        lambda: [json.dumps(_about()).encode()],
        "comparison.json",
        _JSON,
    ),
    "model.json": Target(_read_model, lambda: [MODEL], "model.json", _JSON),
    "model": Target(_read_model, _a_model, "model.safetensors", _JSON),
    "checkpoint": Target(_read_checkpoint, lambda: [_state()], "state.json", _JSON),
    "study": Target(lambda path: load_design(path.parent), lambda: [_study()], "study.json", _JSON),
    "request": Target(
        _ask_study,
        lambda: [
            b'POST /api/begin x\n{"consent": true}',
            b'POST /api/vote study=x\n{"trial": "aaaaaaaaaaaaaaaaaaaaaa", "choice": 1, "seconds": 2.5}',
            b'POST /api/resume x\n{"token": "' + b"a" * 43 + b'"}',
            b"GET /image/aaaaaaaaaaaaaaaaaaaaaa/left x\n",
            b"GET /api/state study=x\n",
        ],
        "request",
        (*_JSON, b"%2e%2e/", b"../", b"%00", b"\r\n"),
    ),
}


# ---- mutations ----


def mutated(rng: random.Random, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """One of the seeds with a few of its bytes changed, lost, doubled, moved or taken from another."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        at = rng.randrange(len(data) + 1)
        length = min(len(data) - at, rng.choice((1, 1, 2, 4, 8, 32, 256)))
        kind = rng.randrange(10)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
        elif kind == 5 and words:
            word = rng.choice(words)
            data[at : at + rng.choice((0, len(word)))] = word
        elif kind == 6:
            number = rng.choice((0, 1, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 10**6))
            width = rng.choice((1, 2, 4, 8))
            data[at : at + width] = (number % 256**width).to_bytes(width, rng.choice(("little", "big")))
        elif kind == 7:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        elif kind == 8:
            del data[at:]
        elif kind == 9:
            data = bytearray(_redone(rng, bytes(data), words))
        del data[2**20 :]
    return bytes(data)


def _redone(rng: random.Random, data: bytes, words: tuple[bytes, ...]) -> bytes:
    """Inside of what a checksum or a compression would hide: a chunk of a PNG, a member of a zip."""
    if data[:4] == b"\x89PNG":
        return _png_redone(rng, data)
    if data[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = {each.filename: archive.read(each) for each in archive.infolist()}
        except Exception:
            return data
        name = rng.choice(sorted(members) or [""])
        out = io.BytesIO()
        with zipfile.ZipFile(
            out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        ) as new:
            for each, held in members.items():
                new.writestr(each, mutated(rng, [held], words) if each == name else held)
        return out.getvalue()
    for kind in ("b", "h", "i", "q"):
        size = struct.calcsize(kind)
        if rng.random() < 0.25 and len(data) > size:
            at = rng.randrange(len(data) - size)
            (number,) = struct.unpack_from("<" + kind, data, at)
            changed = max(-(2 ** (8 * size - 1)), min(2 ** (8 * size - 1) - 1, number + rng.choice((-1, 1, 7))))
            return data[:at] + struct.pack("<" + kind, changed) + data[at + size :]
    return data


def _png_redone(rng: random.Random, data: bytes) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if length > len(data):
            break
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    packed = rng.choice((zlib.compress(bytes(2**20)), b"name\0\0" + zlib.compress(bytes(2**21)), b""))
    chunks[place] = (kind, mutated(rng, [body], ()) if rng.random() < 0.8 else packed)
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), (rng.choice((b"iCCP", b"zTXt", b"iTXt", b"acTL", b"eXIf")), packed))
    out = data[:8]
    for kind, body in chunks:
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return out


# ---- one case ----


class Finding(Exception):
    """A reader did what it must not."""


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Finding(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check(target: Target, data: bytes, *, limit_s: float | None = LIMIT_S, memory_mib: float = MEMORY_MIB) -> str:
    """Give a reader one file. -> "read" or "refused". limit_s: None where another has the clock. Errors: Finding."""
    before = _peak_mib()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder, target.name)
        path.write_bytes(data)
        try:
            with _within(limit_s) if limit_s else contextlib.nullcontext(), warnings.catch_warnings():
                warnings.simplefilter("error")
                target.read(path)
            outcome = "read"
        except (VeridicalError, *target.allowed) as error:
            str(error).encode()  # it can be printed
            outcome = "refused"
        except Finding:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise Finding(f"{type(error).__name__}: {str(error)[:300]}") from error
    if _peak_mib() - before > memory_mib:
        raise Finding(f"it takes {_peak_mib() - before:.0f} MiB")
    return outcome


def cases(name: str, seed: int = 0) -> Iterator[bytes]:
    """The seeds, then mutations of them without end; the same for the same seed."""
    target = READERS[name]
    seeds, rng = target.seeds(), random.Random(f"{name} {seed}")
    yield from seeds
    while True:
        yield mutated(rng, seeds, target.words)


def run(name: str, *, number: int, seconds: float, seed: int, limit_s: float, memory_mib: float, out: Path) -> int:
    """-> how many findings of another kind each."""
    target, counts = READERS[name], {"read": 0, "refused": 0}
    findings: dict[str, str] = {}
    began = time.monotonic()
    for done, data in enumerate(cases(name, seed)):
        if done >= number or time.monotonic() - began > seconds:
            break
        try:
            counts[check(target, data, limit_s=limit_s, memory_mib=memory_mib)] += 1
        except Finding as error:
            cause = error.__cause__
            traced = cause.__traceback__ if cause else None
            while traced and traced.tb_next:
                traced = traced.tb_next
            where = f"{Path(traced.tb_frame.f_code.co_filename).name}:{traced.tb_lineno}" if traced else ""
            kind = f"{str(error).partition(':')[0]} at {where}"
            if kind not in findings:
                findings[kind] = str(error)
                out.mkdir(exist_ok=True)
                file = out / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
                file.write_bytes(data)
                print(f"{name}: FINDING {kind}: {error} ({file})", flush=True)
    total = sum(counts.values()) + len(findings)
    spent = time.monotonic() - began
    print(
        f"{name}: mutations, seed {seed}: {total} cases in {spent:.0f} s, {counts['read']} read, "
        f"{counts['refused']} refused, {len(findings)} findings",
        flush=True,
    )
    return len(findings)


def run_atheris(name: str, *, number: int, seconds: float, out: Path, limit_s: float) -> None:
    """Coverage-guided; ends the process. The library counts cases and stops at the first finding."""
    target = READERS[name]
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-corpus-"))
    for place, data in enumerate(target.seeds()):
        (corpus / str(place)).write_bytes(data)
    out.mkdir(exist_ok=True)
    words = corpus.with_suffix(".dict")
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words))
    options = [sys.argv[0], str(corpus), f"-max_total_time={seconds:g}", f"-runs={number}", "-max_len=65536",
               f"-artifact_prefix={out}/{name}-", f"-timeout={limit_s:g}", "-rss_limit_mb=4096", "-print_final_stats=1",
               f"-dict={words}"]  # fmt: skip
    atheris.Setup(options, lambda data: check(target, data, limit_s=None) and None)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=[*READERS, "all"])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["mutate", "atheris"], default="mutate")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of one case")
    parser.add_argument("--memory", type=float, default=MEMORY_MIB, help="MiB of one case")
    parser.add_argument("--file", type=Path, help="one case alone, with its traceback")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.file:
        print(check(READERS[given.reader], given.file.read_bytes(), limit_s=given.limit, memory_mib=given.memory))
        return 0
    names = list(READERS) if given.reader == "all" else [given.reader]
    if given.engine == "atheris":
        if len(names) == 1:
            run_atheris(names[0], number=given.cases, seconds=given.seconds, out=given.out, limit_s=given.limit)
        # A process for each reader: the library ends its own.
        return sum(
            subprocess.run(
                [
                    *(sys.executable, "-m", "tests.fuzz", name, "--engine=atheris", f"--cases={given.cases}"),
                    *(f"--seconds={given.seconds}", f"--out={given.out}"),
                ],
                check=False,
            ).returncode
            != 0
            for name in names
        )
    return sum(
        run(name, number=given.cases, seconds=given.seconds, seed=given.seed, limit_s=given.limit,
            memory_mib=given.memory, out=given.out)
        for name in names
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(min(1, main()))
