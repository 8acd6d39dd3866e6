"""A comparison shared among the machines of a Ray cluster: the same rows, whatever is lost on the way."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.heard import Heard
from tests.object_store import KEYS, s3_server  # noqa: F401 # a fixture
from tests.photographs import quick_recipe, write_photographs
from veridical.comparison.storage import to_read
from veridical.comparison.sweep import compare, compare_tasks
from veridical.core.errors import RecipeError, VeridicalError
from veridical.training import checkpoint as checkpoints

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'veridical[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

# Ray leaves sockets and files for the collector to close, and asks for what Python is about to drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)

MEMORY = {"object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Raylets as of several machines on this one: a head that computes nothing, and one of one core."""
    variables = {"OMP_NUM_THREADS": "1", **KEYS}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    # A machine that does not answer is given up after 5 s, not after 15.
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": {"health_check_period_ms": 1000}, **MEMORY}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, **MEMORY)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as a training has on the cluster, which decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos")


class HeardThere(Heard):
    """begun: the trainings that other machines began. of_each: what is heard of each."""

    def __init__(self, when_at: Callable[[str, int], None] | None = None) -> None:
        super().__init__()
        self.begun: list[str] = []
        self.of_each: dict[str, _One] = {}
        self.when_at = when_at or (lambda name, step: None)

    def elsewhere(self, name: str, where: str) -> None:
        assert where
        self.begun.append(name)

    def of(self, name: str) -> "_One":
        return self.of_each.setdefault(name, _One(self, name))


class _One(Heard):
    def __init__(self, whole: HeardThere, name: str) -> None:
        super().__init__()
        self.whole, self.name = whole, name

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        del total, terms, rate
        self.whole.when_at(self.name, step)


def weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    finished = [path.parent for path in run.rglob("model.json")]
    return {place.relative_to(run).as_posix(): load_file(place / "model.safetensors") for place in finished}


def assert_the_same(run: Path, other: Path) -> None:
    """The rows to the bit, and every trained weight."""
    assert pl.read_parquet(run / "rows.parquet").equals(pl.read_parquet(other / "rows.parquet"))
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for place, tensors in ours.items():
        assert all(torch.equal(value, theirs[place][key]) for key, value in tensors.items()), place


def test_another_address_than_rays_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--on must be ray or ray://HOST:PORT, but got 'slurm'"):
        compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run", on="slurm")


def test_a_training_over_several_machines_is_no_task(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a task of a cluster is on one machine"):
        compare(quick_recipe(data, 'losses=["l1"]', "training.nodes=2"), tmp_path / "run", on="ray")


@pytest.mark.usefixtures("cluster", "one_thread")
def test_the_rows_and_weights_are_those_of_one_machine(data: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(data, 'losses=["l1", "spl-a"]', "training.seeds=2", 'classical=["wiener"]')
    compare(recipe, tmp_path / "here")
    heard = HeardThere()
    assert compare(recipe, tmp_path / "there", heard, on="ray") == tmp_path / "there"
    assert_the_same(tmp_path / "there", tmp_path / "here")
    every = ["l1, seed 0", "l1, seed 1", "spl-a, seed 0", "spl-a, seed 1"]
    assert sorted(heard.begun) == every
    assert sorted(heard.ends) == [(name, "done") for name in every]

    heard = HeardThere()
    compare(recipe, tmp_path / "there", heard, on="ray")
    assert heard.begun == []
    assert sorted(heard.ends) == [(name, "kept") for name in every]


@pytest.mark.usefixtures("one_thread")
def test_a_machine_that_is_lost_costs_what_came_after_its_last_checkpoint(
    cluster: Any, data: Path, tmp_path: Path
) -> None:
    recipe = quick_recipe(
        data,
        'losses=["l1", "l2"]',
        "training.steps=600",  # of which a quick machine makes 100 a second, and tells of one a second
        "training.checkpoint_every=30",
        "resources.custom={second=1}",
    )
    lost = cluster.add_node(num_cpus=1, resources={"second": 1}, **MEMORY)
    replaced: list[Any] = []

    def lose(name: str, step: int) -> None:
        if replaced or step < 10 or checkpoints.newest(tmp_path / "there" / name / "checkpoints") is None:
            return
        replaced.append(None)
        cluster.remove_node(lost, allow_graceful=False)
        replaced[0] = cluster.add_node(num_cpus=1, resources={"second": 1}, **MEMORY)

    heard = HeardThere(lose)
    compare(recipe, tmp_path / "there", heard, on="ray")
    cluster.remove_node(replaced[0])
    assert len(heard.begun) == 3, "one of the two was begun twice"
    (again,) = (name for name in ("l1", "l2") if heard.begun.count(name) == 2)
    assert heard.of_each[again].starts[0] == 0
    assert heard.of_each[again].starts[-1] > 0, "it went on from a checkpoint"
    assert sorted(heard.ends) == [("l1", "done"), ("l2", "done")]
    compare(recipe, tmp_path / "here")
    assert_the_same(tmp_path / "there", tmp_path / "here")


@pytest.mark.usefixtures("cluster", "one_thread")
def test_a_loss_that_fails_is_left_out_as_on_one_machine(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from veridical.losses import Loss\n\n\n"
        "class Bad(Loss):\n"
        "    def compare(self, prediction, data):\n"
        "        return (prediction - data).flatten(1).mean(1) / 0\n"
    )
    recipe = quick_recipe(data, f'losses={{good = "l1", bad = "{own}:Bad"}}', "training.seeds=2")
    compare(recipe, tmp_path / "here")
    heard = HeardThere()
    compare(recipe, tmp_path / "there", heard, on="ray")
    assert_the_same(tmp_path / "there", tmp_path / "here")
    assert ("good, seed 1", "done") in heard.ends
    assert ("bad, seed 0", "failed") in heard.ends


@pytest.mark.usefixtures("cluster", "one_thread")
def test_what_a_machine_cannot_do_is_said_and_may_be_done_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veridical.comparison import on_ray

    recipe = quick_recipe(data, 'losses=["l1"]')
    real = on_ray.cell_of
    with monkeypatch.context() as patched:
        patched.setattr(
            on_ray, "cell_of", lambda plan, contender, run, threads: real(plan, contender, "/nowhere/run", threads)
        )
        with pytest.raises(
            VeridicalError, match=r"1 of 1 trainings are not finished.*(?s:.)*does not see the run folder"
        ):
            compare(recipe, tmp_path / "run", on="ray")
    heard = HeardThere()
    compare(recipe, tmp_path / "run", heard, on="ray")
    assert heard.ends == [("l1", "done")]


@pytest.mark.usefixtures("cluster", "one_thread")
def test_a_training_on_two_devices_is_carried_out_in_processes_of_its_own(data: Path, tmp_path: Path) -> None:
    # Adam steps as far where the gradient is all rounding; batch normalisation would see the images of one device.
    settings = [
        'losses=["l1"]',
        "training.optimizer=sgd",
        "model.name=nafnet(encoder_blocks=(1, 1), decoder_blocks=(1, 1))",
    ]
    heard = HeardThere()
    run = compare(quick_recipe(data, *settings, "training.devices=2"), tmp_path / "run", heard, on="ray")
    assert heard.ends == [("l1", "done")]
    alone = compare(quick_recipe(data, *settings), tmp_path / "alone")
    ours, theirs = (weights(Path(each))["l1"] for each in (run, alone))
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("one_thread")
def test_the_cells_of_several_tasks_share_a_cluster_and_a_storage(
    cluster: Any,
    s3_server: str,  # noqa: F811
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No machine sees the folder of another: all that they share is the storage."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    ray.shutdown()  # the address is told to the machines by whoever connects
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    tasks = {name: quick_recipe(data, 'losses=["l1"]', f"degradation={name}") for name in ("jpeg", "box-blur")}
    url = "s3://cluster/runs"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("cluster")
    heard = HeardThere()
    runs = compare_tasks(tasks, url, heard, on="ray")
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")  # as the other tests expect it
    assert runs == {name: f"{url}/{name}" for name in tasks}
    assert sorted(heard.ends) == [("box-blur: l1", "done"), ("jpeg: l1", "done")]
    for name, recipe in tasks.items():
        compare(recipe, tmp_path / name)
        with to_read(runs[name]) as (folder, _):
            assert_the_same(folder, tmp_path / name)
            assert (folder / "images" / "l1").is_dir()


_SCRIPT = """
import sys
from pathlib import Path
from tests.photographs import quick_recipe
from veridical.comparison.observer import Observer
from veridical.comparison.storage import to_read
from veridical.comparison.sweep import compare, compare_tasks

class Tells(Observer):
    def elsewhere(self, name, where):
        print("begun", flush=True)
    def of(self, name):
        return self
    def step(self, step, total, terms, rate):
        print("step", step, flush=True)
    def note(self, text):
        print(text, flush=True)

settings = ['losses=["l1"]', "training.steps=3000", "training.checkpoint_every=3000"]
compare(quick_recipe(Path(sys.argv[1]), *settings), Path(sys.argv[2]), Tells(), on="ray")
"""


@pytest.mark.usefixtures("one_thread")
def test_ctrl_c_lets_every_step_end_and_be_saved(cluster: Any, data: Path, tmp_path: Path) -> None:
    """A real process, which has no checkpoint but the one that it makes when it is told to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(data), str(tmp_path / "run")],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "stopping 1 trainings; what runs ends its step and saves it" in said
    newest = checkpoints.newest(tmp_path / "run" / "l1" / "checkpoints")
    assert newest is not None
    assert 0 < int(newest.name[-8:]) < 3000
