"""Tasks: what a person wants mended, as a degradation to train against, a model to start with, and how to train it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """One kind of restoration; a recipe may say otherwise of all of it.

    degradation: a spec for `degradation()`; None for a task of real pairs.
    model:       a spec of MODELS. channels: 3 (RGB) or 1 (luma), of it and of all images.
    training:    settings in place of the usual ones. metrics: likewise; None for the usual ones.
    learned:     the task whose discriminators serve the loss mdf; they ship for some tasks only.
    """

    degradation: str | None
    model: str
    summary: str
    learned: str
    channels: int = 3
    training: Mapping[str, object] = field(default_factory=dict)
    metrics: tuple[str, ...] | None = None

    @property
    def pairs(self) -> bool:
        """Whether it can be trained on real pairs alone."""
        return self.degradation is None


TASKS: dict[str, Task] = {
    # Camera shake with noise of 0 to 15 levels: the deblurring of the projected distribution loss paper.
    "deblur": Task(
        degradation="camera-shake + gaussian-noise(sigma_8bit=(0, 15))",
        model="unet",
        summary="photographs shaken by hand, with mild noise",
        learned="deblur",
    ),
    # A lens blurs by a disc. The sharpness paper's stand-in for it is "box-deblur".
    "defocus": Task(
        degradation="disc-blur(radius_px=(1, 4)) + gaussian-noise(sigma_8bit=(0, 5))",
        model="unet",
        summary="photographs out of focus, with slight noise",
        learned="defocus",
    ),
    "denoise": Task(
        degradation="gaussian-noise(sigma_8bit=25)",
        model="dncnn",
        summary="white Gaussian noise of standard deviation 25 of 255",
        learned="denoise",
    ),
    # A model that keeps the size is fed the image enlarged by bicubic interpolation.
    "super-resolve": Task(
        degradation="bicubic-downscale(scale=4)",
        model="edsr",
        summary="four times the resolution",
        learned="super-resolve",
    ),
    "jpeg": Task(
        degradation="jpeg(quality=20)",
        model="dncnn",
        summary="blocks and ringing of JPEG at quality 20",
        learned="jpeg",
    ),
    "demosaic": Task(
        degradation="bayer-mosaic(pattern=rggb, noise_sigma_8bit=5)",
        model="unet",
        summary="full colour from a Bayer sensor, with slight noise",
        learned="demosaic",
    ),
    # The projected distribution loss paper, table 1, with its model and metrics.
    "denoise-strong": Task(
        degradation="gaussian-noise(sigma_8bit=100)",
        model="srn",
        summary="white Gaussian noise of standard deviation 100 of 255",
        learned="denoise",
        metrics=("psnr", "ms-ssim", "lpips"),
    ),
    # The MDF paper's denoising; 20 layers are the DnCNN authors' for noise of unknown strength.
    "denoise-blind": Task(
        degradation="gaussian-noise(sigma_8bit=(0, 55))",
        model="dncnn(depth=20)",
        summary="white Gaussian noise of unknown standard deviation, from 0 to 55 of 255",
        learned="denoise",
    ),
    # The sharpness paper: model, luma alone, crops of 128 px.
    "box-deblur": Task(
        degradation="box-blur(size=5)",
        model="unet",
        summary="an average over 5x5 pixels, in luma",
        learned="defocus",
        channels=1,
        training={"crop": 128},
    ),
    # The same model and crops; what is out of focus in earnest is wanted in colour.
    "defocus-pairs": Task(
        degradation=None,
        model="unet",
        summary="photographs out of focus, learned from real pairs",
        learned="defocus",
        training={"crop": 128},
    ),
    # NAFNet has no batch normalisation, which the small batches that fit large crops would suffer from, and looks far
    # for few operations, as motion needs; 256 px are its authors' crops.
    "motion-deblur": Task(
        degradation=None,
        model="nafnet",
        summary="motion of the camera and of what it sees, learned from real pairs",
        learned="deblur",
        training={"crop": 256},
    ),
}
