"""The house as docs/architecture.md draws it: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import veridical

SOURCE = Path(veridical.__file__).parent
ROOMS = [
    "core", "features", "distances", "measures", "losses", "metrics", "degradations", "models",
    "deconvolution", "training", "comparison", "benchmark", "study", "cli",
]  # fmt: skip
NEVER = {("metrics", "losses"), ("losses", "metrics"), ("training", "comparison")}
SMALL = {"torch", "numpy", "PIL", "safetensors"}
# The recipe is validated by pydantic; only the command reads recipes.
EXCEPT = {"training/recipe.py": {"pydantic", "pydantic_core", "tomli_w"}}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(file: Path, *, top_level_only: bool = False) -> set[str]:
    """Every module that a file imports; with `top_level_only`, those that importing the file imports."""
    tree = ast.parse(file.read_text())
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(function)
        for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        if top_level_only and id(node) in lazy:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write the import in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "veridical" and len(parts) > 1 else ""


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != SOURCE], ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_above_it(file):
    own = file.relative_to(SOURCE).parts[0]
    allowed = ROOMS[: ROOMS.index(own) + 1] if own != "models" else ["models"]
    for module in imports(file):
        if module.partition(".")[0] == "veridical" and module != "veridical.__version__":
            assert room(module) in allowed, f"{own} must not import {module}"
            assert (own, room(module)) not in NEVER, f"{own} must not import {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_nothing_but_the_command_imports_the_report(file):
    if file.parent.name != "cli":
        assert not any(m.startswith("veridical.comparison.report") for m in imports(file))
        assert not any(m.startswith("veridical.cli") for m in imports(file)) or file.name == "__main__.py"


@pytest.mark.parametrize(
    "file",
    [
        f
        for f in FILES
        if room("veridical." + ".".join(f.relative_to(SOURCE).parts)) in ROOMS[: ROOMS.index("training") + 1]
    ],
    ids=lambda f: str(f.relative_to(SOURCE)),
)
def test_rooms_up_to_training_import_the_small_size_alone(file):
    """So that a machine with plain torch can train."""
    allowed = SMALL | set(sys.stdlib_module_names) | {"veridical"} | EXCEPT.get(str(file.relative_to(SOURCE)), set())
    for module in imports(file, top_level_only=True):
        assert module.partition(".")[0] in allowed, f"{module}: import it where it is used, with catalog.require"


def test_import_is_quick_and_silent():
    """Under 2 s beyond torch (CPU time, so that a busy machine does not matter), printing and fetching nothing."""
    code = (
        "import time, torch, numpy, PIL, safetensors.torch\n"
        "start = time.process_time()\n"
        "import veridical, sys\n"
        "assert time.process_time() - start < 2, time.process_time() - start\n"
        "for heavy in ('polars', 'scipy', 'pydantic', 'skimage', 'cv2', 'matplotlib', 'lightning_fabric'):\n"
        "    assert heavy not in sys.modules, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
