"""Where the results of learning a loss lie: one .safetensors file, and beside it the folder of the run."""

from pathlib import Path

from veridical.core.errors import BadOption


def check_out(out: Path) -> None:
    """BadOption unless `out` can be made: a new .safetensors file."""
    if out.suffix != ".safetensors":
        raise BadOption(
            f"what is learned is a .safetensors file; got -o {out}. Write {out.with_suffix('.safetensors')}."
        )
    if out.exists():
        raise BadOption(f"{out} is there already. Choose another -o, or delete it.")


def run_folder(out: Path) -> Path:
    """Where the checkpoints and the log of the learning lie, beside the file."""
    return Path(out).with_suffix(".run")
