"""What veridical is installed from: pinned, hashed, licensed, built twice to equal bytes, and run without a network."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import veridical

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"


@pytest.fixture(scope="module")
def of():
    """The modules of the folder requirements, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REQUIREMENTS)
        yield importlib.import_module


def pinned(*files: str) -> dict[str, tuple[Requirement, list[str]]]:
    """The requirement and the hashes of each distribution in files of requirements/."""
    found = {}
    for file in files:
        for entry in (REQUIREMENTS / file).read_text().replace("\\\n", " ").splitlines():
            if not entry.startswith("#"):
                text, *hashes = entry.split("--hash=")
                requirement = Requirement(text)
                name = re.sub(r"[-_.]+", "-", requirement.name).lower()
                assert name not in found or requirement.marker  # for another Python
                found[name] = requirement, [each.strip() for each in hashes]
    return found


LOCK = pinned("lock.txt", "torch.txt")
DOCS = pinned("docs.txt")


def version(requirement: Requirement) -> Version:
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    return Version(pin.version)


def test_every_pin_has_hashes():
    for requirement, hashes in (*LOCK.values(), *pinned("torch-cpu.txt").values(), *DOCS.values()):
        assert hashes, f"{requirement} has no hash: make lock"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)
        version(requirement)


def test_the_lock_meets_every_requirement_of_the_project(of):
    extras = of("installed").EXTRAS
    wanted = [Requirement(text) for extra in ("", "dev", *of("installed").RUNTIME, "supply") for text in extras[extra]]
    assert len(wanted) > 50
    for requirement in wanted:
        if requirement.name == "veridical":
            assert requirement.extras <= extras.keys()
            continue
        pin, _ = LOCK[of("installed").normalised(requirement.name)]
        assert version(pin) in requirement.specifier, f"{requirement} is locked at {pin}: make lock"


def test_the_lock_of_the_site_meets_its_extra_and_agrees_with_the_other(of):
    for requirement in map(Requirement, of("installed").EXTRAS["docs"]):
        pin, _ = DOCS[of("installed").normalised(requirement.name)]
        assert version(pin) in requirement.specifier, f"{requirement} is locked at {pin}: make lock"
    both = DOCS.keys() & LOCK.keys()
    assert len(both) > 5
    assert {name: version(DOCS[name][0]) for name in both} == {name: version(LOCK[name][0]) for name in both}, (
        "make lock"
    )
    assert "torch" not in DOCS


def test_both_builds_of_torch_are_of_one_version():
    (cpu, _), (pypi, _) = pinned("torch-cpu.txt")["torch"], LOCK["torch"]
    assert version(cpu).public == str(version(pypi))
    assert version(cpu).local == "cpu"


def test_torchvision_is_never_installed():
    assert "torchvision" not in LOCK
    assert "torchvision" not in (ROOT / "constraints.txt").read_text()


def test_the_constraints_are_the_versions_of_the_lock():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert sorted(map(str, map(Requirement, lines))) == sorted(str(pin) for pin, _ in LOCK.values())


# ---- licences ----


def rows() -> dict[str, list[str]]:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    table = page.partition("| distribution |")[2].partition("<!-- to here -->")[0].splitlines()[2:]
    return {cells[0]: cells for cells in ([cell.strip() for cell in row.strip("|").split("|")] for row in table)}


def test_every_locked_distribution_stands_on_the_page_of_licences(of):
    listed = {of("installed").normalised(name): cells for name, cells in rows().items()}
    elsewhere = {"colorama", "httpx2-jsfetch", "pywin32"}  # of Windows and of browsers
    locked = {name: pin for name, (pin, _) in LOCK.items() if not re.match(r"triton|cuda-|nvidia-", name)}
    assert listed.keys() == locked.keys() - elsewhere, "make licences"
    for name, cells in listed.items():
        assert Version(cells[1]) == version(locked[name]), f"{name}: make licences"


def test_every_licence_is_permissive_or_a_named_exception(of):
    licences = of("licences")
    strict = {name for name, cells in rows().items() if not licences.is_permissive(cells[2])}
    assert strict == set(licences.EXCEPTIONS)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR Apache-2.0) AND PSF-2.0", True),
        ("LGPL-3.0-only", False),
        ("unknown", False),
    ],
)
def test_a_choice_needs_one_permissive_licence_and_a_sum_needs_all(of, expression, expected):
    assert of("licences").is_permissive(expression) is expected


def in_lock_step() -> bool:
    """Whether what is installed is what is locked."""
    try:
        return all(
            Version(distribution(name).version).public == str(version(pin))
            for name, (pin, _) in pinned("lock.txt").items()
            if pin.marker is None or pin.marker.evaluate()
        )
    except PackageNotFoundError:
        return False


needs_the_lock = pytest.mark.skipif(not in_lock_step(), reason="other versions are installed than locked: make test")


@needs_the_lock
def test_the_page_of_licences_is_what_the_command_writes_now(of):
    assert of("licences").text() == of("licences").PAGE.read_text(encoding="utf-8"), "make licences"


# ---- the bill of materials ----


@needs_the_lock
def test_the_bill_of_materials_is_valid_and_names_what_is_needed_and_nothing_else(of):
    made = of("sbom").bill(("",))  # cyclonedx-py checks it against the schema
    bill = json.loads(made)
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "veridical"
    assert bill["metadata"]["component"]["version"] == veridical.__version__
    names = {of("installed").normalised(component["name"]) for component in bill["components"]}
    assert {"torch", "numpy", "pillow", "safetensors", "sympy"} <= names
    assert names == of("installed").asked_for("").keys()
    assert all(component["purl"].startswith("pkg:pypi/") and component["licenses"] for component in bill["components"])


# ---- wheel and sdist ----


def build(source: Path, out: Path, umask: int) -> dict[str, str]:
    """Build both from a copy of the source; the sha256 of each by name."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(out)],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": str(umask)},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.iterdir()}


def copy(to: Path, umask: int) -> Path:
    """The files of the source in another folder, as another user with another umask has them, all changed just now."""
    belongs = ("src", "docs", "experiments", "tests", "requirements")
    before = os.umask(umask)
    try:
        for name in belongs:
            shutil.copytree(
                ROOT / name, to / name, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("__pycache__")
            )
        for file in ROOT.iterdir():
            if file.is_file() and (file.suffix or file.name in ("Makefile", "LICENSE", "NOTICE", ".gitignore")):
                shutil.copyfile(file, to / file.name)
    finally:
        os.umask(before)
    return to


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Twice the same source: the folder of the first build, and the hashes of both."""
    pytest.importorskip("hatchling", reason="needs hatchling (pip install 'veridical[supply]')")
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("another-folder")
    first = build(copy(one, 0o022), one / "dist", 0o022)
    second = build(copy(two, 0o077), two / "dist", 0o077)
    return one / "dist", first, second


def test_two_builds_in_other_folders_with_other_umasks_are_equal_to_the_byte(built):
    _, first, second = built
    assert len(first) == 2
    assert first == second


def test_the_wheel_holds_the_package_its_licences_and_nothing_else(built):
    (wheel,) = built[0].glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(file.relative_to(ROOT / "src"))
        for file in (ROOT / "src" / "veridical").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    information = f"veridical-{veridical.__version__}.dist-info"
    assert {name for name in names if not name.startswith(information)} == package
    licences = {Path(name).name for name in names if name.startswith(f"{information}/licenses/")}
    assert licences == {"LICENSE", "NOTICE", "LPIPS_LICENSE.txt", "DISTS_LICENSE.txt"}


def test_the_sdist_holds_what_belongs_and_builds_the_same_wheel(built, tmp_path):
    folder, first, _ = built
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path, filter="data")
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    top = {Path(member.name).parts[1] for member in members}
    expected = {
        "src",
        "tests",
        "docs",
        "experiments",
        "requirements",
        "constraints.txt",
        "Makefile",
        "mkdocs.yml",
        "LICENSE",
        "NOTICE",
    }
    assert top == expected | {"README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    (source,) = tmp_path.iterdir()
    again = build(source, tmp_path / "dist", 0o022)
    assert again == first


def test_the_wheel_runs_in_a_new_environment_without_a_network(built, tmp_path):
    """Installed by pip with no index; the other distributions are those of this environment."""
    (wheel,) = built[0].glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    alone = shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    no_network = ["unshare", "-rn"] if alone else []
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    environment |= {"VERIDICAL_OFFLINE": "1", "HOME": str(tmp_path), "COLUMNS": "200"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [*no_network, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-index",
        "--no-deps",
        "--quiet",
        str(wheel),
    )
    # After the new environment's own packages come those of this one, less veridical and its link to the source.
    others = tmp_path / "others"
    others.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if "veridical" not in entry.name and not (others / entry.name).exists():
                (others / entry.name).symlink_to(entry)
    (packages / "others.pth").write_text(str(others))

    where = run(str(python), "-c", "import veridical; veridical.loss('l1'); print(veridical.__file__)")
    assert Path(where.strip()).is_relative_to(packages)
    command = str(tmp_path / "venv" / "bin" / "veridical")
    assert veridical.__version__ in run(command, "--version")
    assert "lpips" in run(command, "losses")
    shown = run(command, "compare", "--demo", "--steps", "2", "--losses", "l1, l2", "--out", "run")
    assert "report.html" in shown
    assert (tmp_path / "run" / "report.html").exists()
