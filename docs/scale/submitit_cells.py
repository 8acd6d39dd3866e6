"""A comparison as SLURM jobs, one for each training, with submitit and without Ray.

    python docs/scale/submitit_cells.py recipe.toml /shared/runs/x --partition gpu --gpus 1 --cpus 8 --hours 24

Every training is a cell: text that says what to train, and where the run is. The jobs write only inside their own
folder of the run; this process checks everything first, waits for them, and lets `compare` take over what they left.
Given again, it sends only what is not finished, which goes on from its last checkpoint.
"""

import argparse
from pathlib import Path

import submitit

from veridical.comparison.cell import Outcome, carry_out, cell_of
from veridical.comparison.observer import Observer
from veridical.comparison.plan import prepare
from veridical.comparison.results import load_result, references, write_state
from veridical.comparison.sweep import compare
from veridical.training.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path, help="the run folder, on storage that all machines share")
    parser.add_argument("--cluster", help="slurm, local (processes of this machine) or debug; found out when left out")
    parser.add_argument("--partition")
    parser.add_argument("--gpus", type=int, default=0, help="of each training")
    parser.add_argument("--cpus", type=int, default=4, help="of each training")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--at-once", type=int, default=64, help="jobs that run at a time")
    asked = parser.parse_args()

    recipe, out = load_recipe(asked.recipe), asked.out.absolute()
    plan = prepare(recipe, out, Observer(), leave_out=False)
    waiting = [each for each in plan.contenders if not load_result(plan, each)]
    write_state(plan, references(plan, Observer()), f"python {Path(__file__).name} {asked.recipe} {asked.out}")
    cells = [cell_of(plan, each, str(out), asked.cpus) for each in waiting]

    executor = submitit.AutoExecutor(folder=out.parent / f"{out.name}-jobs", cluster=asked.cluster)
    executor.update_parameters(name="veridical", timeout_min=round(60 * asked.hours), cpus_per_task=asked.cpus)
    if asked.gpus:
        executor.update_parameters(gpus_per_node=asked.gpus)
    if executor.cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=asked.at_once)
        if asked.partition:
            executor.update_parameters(slurm_partition=asked.partition)
    for job in executor.map_array(carry_out, cells, [Observer()] * len(cells)) if cells else []:
        outcome: Outcome = job.result()
        print(f"job {job.job_id}: {outcome.status}{f': {outcome.error}' if outcome.error else ''}", flush=True)
    compare(recipe, out)
    print(f"veridical report {out}")


if __name__ == "__main__":
    main()
