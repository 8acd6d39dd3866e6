"""Made-up photographs of the size of DIV2K's: python -m tests.made_up_div2k FOLDER COUNT

2040 x 1356 px, PNG: a small picture enlarged, with grain, so that a file is about as large as one of DIV2K's (4.4 MB on
average) and takes as long to decode.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.photographs import photograph

SIZE = (2040, 1356)


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw = np.random.default_rng(number)
        smooth = Image.fromarray(photograph(number, 170, 255)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = draw.normal(0, 1.6, (SIZE[1], SIZE[0], 3))
        pixels = (np.asarray(smooth) + grain).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png", compress_level=6)


if __name__ == "__main__":
    main()
