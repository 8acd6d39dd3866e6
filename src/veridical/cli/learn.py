"""The commands `veridical learn ...`: a loss for one's own degradation."""

from pathlib import Path
from typing import Annotated

import typer

from veridical.cli.common import complain, counted, guarded, learn_app, phases, print_table, safe, say
from veridical.core.errors import VeridicalError


@learn_app.command("mdf")
@guarded
def learn_mdf_loss(
    images: Annotated[
        list[str],
        typer.Option("--image", help="A sharp photograph, or one of the demo's by name: china. Repeatable."),
    ],
    task: Annotated[str, typer.Option(help="What is mended: a name of `veridical degradations`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file for the loss: jpeg.safetensors.")],
    degradation: Annotated[
        str | None, typer.Option(help="In place of the task's: 'jpeg(quality=(20, 40))', 'camera-shake + jpeg'.")
    ] = None,
    quality: Annotated[
        str, typer.Option(help="fast: minutes on a CPU. paper: 3000 iterations of 3 + 3 steps on the whole image.")
    ] = "fast",
    scales: Annotated[int, typer.Option(help="How many discriminators.")] = 8,
    ratio: Annotated[float, typer.Option(help="Of the sizes of two scales.")] = 2.0,
    max_px: Annotated[int, typer.Option(help="A larger photograph is first shrunk to this longer side.")] = 1024,
    inputs: Annotated[
        str, typer.Option(help="What a scale degrades: chained, the result of the one before; seed, the seed image.")
    ] = "chained",
    span: Annotated[
        float | None, typer.Option(help="The most that a generator adds to a pixel of -1..1: 1, and 2 for demosaic.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Of each scale, in place of the quality's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the networks, the windows and the degradation.")] = 0,
    half: Annotated[bool, typer.Option("--half", help="Write float16: half the size.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Train MDF's discriminators for a degradation, from one photograph; the loss `mdf` takes the file."""
    from veridical.comparison.progress import display_scales
    from veridical.training.learn_mdf import learn_mdf
    from veridical.training.learned_file import run_folder
    from veridical.training.seeds import seed_image

    seeds = [seed_image(image) for image in images]
    safe.where = run_folder(out)
    with display_scales() as watcher:
        learned = learn_mdf(
            seeds,
            out,
            task=task,
            degradation_spec=degradation,
            quality=quality,
            scales=scales,
            ratio=ratio,
            max_px=max_px,
            inputs=inputs,
            span=span,
            iterations=iterations,
            seed=seed,
            half=half,
            device=device,
            watcher=watcher,
        )
    rows = [
        (
            str(number),
            f"{each.size[0]}x{each.size[1]}",
            str(each.width),
            str(each.iterations),
            f"{each.gap:.3f}",
            f"{each.input_psnr_db:.1f}",
            f"{each.psnr_db:.1f}",
        )
        for number, each in enumerate(learned.scales, start=1)
    ]
    columns = ("scale", "px", "channels", "iterations", "critic gap", "input dB", "output dB")
    print_table(f"{task}, {learned.seconds:.0f} s", columns, rows)
    say(f"log, and what each scale saw: {learned.run}")
    say(f"discriminators: {learned.path} (sha256 {learned.sha256[:12]}...)")
    say(f"use them: veridical compare --task {task} --losses 'l1,mdf(weights={learned.path})'")


@learn_app.command("seed")
@guarded
def learn_seed(
    kind: Annotated[str, typer.Option(help="pink-noise, contrast-rings or pyramid-permutation.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The image: seed.png.")],
    image: Annotated[
        str | None, typer.Option(help="What is permuted: a photograph, or one of the demo's by name: china.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side in px; 512 when left out, and of a permuted photograph its own shape.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise and of the permutation.")] = 0,
) -> None:
    """Make an image to learn mdf from, in place of a photograph: those of the paper's figure 7."""
    from veridical.core.files import write_image
    from veridical.training.seeds import made_image, seed_image

    photograph = seed_image(image)[1] if image is not None else None
    made = made_image(kind, size=size, seed=seed, photograph=photograph)
    write_image(out, made)
    say(f"{made.shape[2]}x{made.shape[1]} px of {kind}: {out}")


@learn_app.command("show")
@guarded
def learn_show(
    file: Annotated[str, typer.Argument(help="A file that was learned, or a task whose discriminators ship: jpeg.")],
) -> None:
    """What a learned file says of itself: discriminators for mdf, or an adapter for tfmlc."""
    from veridical.features.learned import learned_notes

    print_table("Learned", ("what", ""), list(learned_notes(file).items()))


@learn_app.command("adapter")
@guarded
def learn_an_adapter(
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter: a .safetensors file.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A folder of photographs, a video, or a folder of videos; repeatable.", show_default=False),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Learn from photographs that are at hand.")] = False,
    features: Annotated[
        str, typer.Option(help="What it adapts: clip-vit-b16, clip-vit-b32, clip-vit-l14, vgg16, vgg19, alexnet, ...")
    ] = "clip-vit-b16",
    block: Annotated[
        str | None, typer.Option(help="Of the tower, from 0 (3 when left out); or a layer, such as relu3_3.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="What to order by strength. See: veridical degradations.")] = None,
    weak: Annotated[str | None, typer.Option(help="In place of the task's: 'jpeg(quality=60)'.")] = None,
    strong: Annotated[str | None, typer.Option(help="In place of the task's: 'jpeg(quality=15)'.")] = None,
    validate: Annotated[
        list[Path] | None,
        typer.Option(help="Others to validate on; by default some of the data are held out. Repeatable."),
    ] = None,
    frames: Annotated[bool, typer.Option("--frames", help="The images of a folder are the frames of a clip.")] = False,
    linear_light: Annotated[
        bool, typer.Option("--linear-light", help="Average frames as light adds up, not as the file's numbers.")
    ] = False,
    motion: Annotated[float, typer.Option(help="Of the frames of a window of video, in pixels.")] = 25.0,
    least_frames: Annotated[int, typer.Option(help="Of a window of video.")] = 15,
    every: Annotated[
        int | None, typer.Option(help="Begin a window every so many frames; by default where the last one ended.")
    ] = None,
    triplets: Annotated[int, typer.Option(help="How many to learn from.")] = 1024,
    validation_triplets: Annotated[int, typer.Option(help="How many to validate on.")] = 256,
    crop: Annotated[int | None, typer.Option(help="Their side in pixels; 224 for CLIP, else 96.")] = None,
    kind: Annotated[str, typer.Option(help="flattened: all positions as one vector; token-wise: each by itself.")] = (
        "flattened"
    ),
    pool: Annotated[int, typer.Option(help="Average the map to this many positions a side first; 0 for none.")] = 0,
    width: Annotated[int, typer.Option(help="Of each of the three layers.")] = 1024,
    epochs: Annotated[int, typer.Option(help="At most.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Triplets in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam at the start.")] = 1e-4,
    margin: Annotated[float, typer.Option(help="Of the triplet loss.")] = 1.0,
    plateau: Annotated[int, typer.Option(help="Epochs without gain after which the rate falls to a tenth.")] = 10,
    patience: Annotated[int, typer.Option(help="Epochs without gain after which it stops.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the crops, the degradations, the adapter and its batches.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="File or folder of the features' network.")] = None,
    memory_gb: Annotated[float, typer.Option(help="For the features; beyond it they are kept in a file.")] = 4.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Teach an adapter on frozen features to order images by how strongly they are degraded: the loss tfmlc.

    The same command goes on where it was stopped. Its log and a picture of some triplets are in the folder beside the
    file, with .run in place of .safetensors.
    """
    from veridical.training import learn_adapter as learning
    from veridical.training.learned_file import check_out, run_folder
    from veridical.training.triplets import triplets_from

    if bool(data) == demo:
        raise VeridicalError("name what to learn from: --data with photographs or videos, or --demo.")
    settings = learning.Settings(
        kind=kind, width=width, pool=pool, epochs=epochs, batch_size=batch_size, lr=lr, margin=margin,
        plateau=plateau, patience=patience, seed=seed, device=device, memory_gb=memory_gb,
    )  # fmt: skip
    base = learning.base_named(features, block)
    check_out(out)
    run = run_folder(out)
    safe.where = run
    with phases() as doing:

        class Shown(learning.Watcher):
            def note(self, text: str) -> None:
                complain(f"note: {text}")

            def doing(self, what: str, done: int, total: int, said: str = "") -> None:
                doing(what, done, total, said)

        watcher = Shown()
        learn, held = triplets_from(
            data or (), validate or (), crop=crop or learning.default_crop(base), count=triplets,
            validation_count=validation_triplets, seed=seed, task=task, weak=weak, strong=strong, frames=frames,
            linear_light=linear_light, shift_px=motion, least=least_frames, every=every,
            doing=watcher.doing, note=watcher.note,
        )  # fmt: skip
        found = learning.learn_adapter(
            base, learn, held, out, settings, weights=weights, task=task or "", watcher=watcher
        )
    rows = [
        (name, f"{each.same:.1%}", f"{each.across:.1%}", f"{each.ratio:.2f}")
        for name, each in (
            (f"the frozen features of {base.network} {base.tap}", found.frozen),
            ("with the adapter, untrained", found.before),
            (f"with the adapter, after epoch {found.best_epoch} of {found.epochs}", found.after),
        )
    ]
    columns = ("distance through", "of the same picture", "across pictures", "strong / weak, median")
    print_table(f"weak nearer to sharp than strong, of {counted(len(held), 'validation triplet')}", columns, rows)
    say(
        f"{found.parameters} numbers; {found.features_s:.0f} s for the features ({found.features_mb:.0f} MB), "
        f"{found.seconds:.0f} s for the epochs; log and picture: {run}"
    )
    say(f"adapter: {out}; as a loss: tfmlc(adapter='{out}')")
