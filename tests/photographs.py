"""Small photographs and quick recipes for the tests of the command."""

from pathlib import Path

import numpy as np
from PIL import Image

from veridical.training.recipe import Recipe, load_recipe

# A U-Net of a few hundred weights, three steps: a second for each loss.
QUICK = (
    "degradation=box-blur(size=5)",
    'metrics=["psnr", "ssim"]',
    "model.name=unet(levels=1, convs=1)",
    "model.width=4",
    "training.steps=3",
    "training.batch_size=2",
    "training.crop=32",
    "training.device=cpu",
)


def photograph(seed: int, height: int = 56, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: waves of a few directions, with edges."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in generator.uniform(-0.8, 0.8, (3, 3))]
    image = np.stack(waves, axis=-1) * 90 + 128
    image[height // 3 :, width // 2 :] = 255 - image[height // 3 :, width // 2 :]
    return image.clip(0, 255).astype(np.uint8)


def write_photographs(folder: Path, count: int = 4, *, seed: int = 0, height: int = 56, width: int = 64) -> Path:
    """`count` PNG files named photo0.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(photograph(seed + number, height, width)).save(folder / f"photo{number}.png")
    return folder


def quick_recipe(data: Path, *overrides: str) -> Recipe:
    """QUICK on a folder; some photographs are held out."""
    return load_recipe(None, [*QUICK, f"data.train={data}", *overrides])
