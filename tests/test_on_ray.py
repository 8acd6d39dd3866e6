"""A comparison shared among the machines of a Ray cluster: the same rows, whatever is lost on the way."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.heard import Heard
from tests.photographs import quick_recipe, write_photographs
from veridical.comparison.sweep import compare
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
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY}
    )
    made.add_node(num_cpus=1, **MEMORY)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


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
    return {path.parent.relative_to(run).as_posix(): load_file(path) for path in run.rglob("model.safetensors")}


def assert_the_same(run: Path, other: Path) -> None:
    """The rows to the bit, and every trained weight."""
    assert pl.read_parquet(run / "rows.parquet").equals(pl.read_parquet(other / "rows.parquet"))
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for place, tensors in ours.items():
        assert all(torch.equal(value, theirs[place][key]) for key, value in tensors.items()), place


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
        "training.steps=150",
        "training.checkpoint_every=5",
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


def test_another_address_than_rays_is_refused(data: Path, tmp_path: Path) -> None:
    if ray.is_initialized():
        pytest.skip("connected already")
    with pytest.raises(RecipeError, match="--on must be ray or ray://HOST:PORT, but got 'slurm'"):
        compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run", on="slurm")
