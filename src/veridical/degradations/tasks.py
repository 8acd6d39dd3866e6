"""Tasks: what a person wants mended, as a degradation to train against and a model to start with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One kind of restoration. `degradation` is a spec for `degradation()`, `model` a name in MODELS."""

    degradation: str
    model: str
    summary: str


TASKS: dict[str, Task] = {
    # Camera shake with noise of 0 to 15 levels: the deblurring of the projected distribution loss paper.
    "deblur": Task(
        degradation="camera-shake + gaussian-noise(sigma_8bit=(0, 15))",
        model="unet",
        summary="photographs shaken by hand, with mild noise",
    ),
    # A lens blurs by a disc. The sharpness paper's stand-in for it is "box-blur(size=5)", without noise.
    "defocus": Task(
        degradation="disc-blur(radius_px=(1, 4)) + gaussian-noise(sigma_8bit=(0, 5))",
        model="unet",
        summary="photographs out of focus, with slight noise",
    ),
    "denoise": Task(
        degradation="gaussian-noise(sigma_8bit=25)",
        model="dncnn",
        summary="white Gaussian noise of standard deviation 25 of 255",
    ),
    # Enlarged again by bicubic interpolation, so that any model of MODELS, whose output is as large as its
    # input, can do it; the truth keeps its full size.
    "super-resolve": Task(
        degradation="bicubic-downscale(scale=4) + bicubic-upscale(scale=4)",
        model="unet",
        summary="four times the resolution, from an image enlarged by bicubic interpolation",
    ),
    "jpeg": Task(
        degradation="jpeg(quality=20)",
        model="dncnn",
        summary="blocks and ringing of JPEG at quality 20",
    ),
    "demosaic": Task(
        degradation="bayer-mosaic(pattern=rggb, noise_sigma_8bit=5)",
        model="unet",
        summary="full colour from a Bayer sensor, with slight noise",
    ),
}
