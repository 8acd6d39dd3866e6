"""How many parameters the models of the papers have, beside ours: what docs/models.md and a test compare."""

from typing import NamedTuple


class Configuration(NamedTuple):
    """A network that was published.

    spec:      of ours that is the same, such as "edsr(width=256, blocks=32, res_scale=0.1)".
    published: its number of parameters as printed, in full ("16,697,987") or rounded ("43 M"), or None where the
               authors give none.
    origin:    who printed or counted it.
    """

    spec: str
    published: str | None
    origin: str


_PAPER = "the paper"
_RELEASED = "counted in the released network"

CONFIGURATIONS = (
    Configuration("unet(channels=1)", "4,891,216", "counted in the sharpness paper's code"),
    Configuration("dncnn(channels=1, batch_norm=False)", "555,137", "the released file, one noise level"),
    Configuration("dncnn(depth=20, batch_norm=False)", "668,227", "the released files, colour"),
    Configuration("edsr", "1.5 M", "the paper, table 1: baseline"),
    Configuration("edsr(width=256, blocks=32, res_scale=0.1)", "43 M", "the paper, table 1"),
    Configuration("srresnet", "1.5 M", "EDSR's paper, table 1"),
    Configuration("rrdbnet", "16,697,987", _RELEASED),
    Configuration("nafnet", "17.1 M", "the paper: GoPro"),
    Configuration("nafnet(width=64)", "67.9 M", "the paper: GoPro"),
    Configuration(
        "nafnet(encoder_blocks=(2, 2, 4, 8), middle_blocks=12, decoder_blocks=(2, 2, 2, 2))", None, "the code: SIDD"
    ),
    Configuration(
        "nafnet(width=64, encoder_blocks=(2, 2, 4, 8), middle_blocks=12, decoder_blocks=(2, 2, 2, 2))",
        None,
        "the code: SIDD",
    ),
    Configuration("mprnet", "20.1 M", "the paper: deblurring"),
    Configuration("mprnet(width=80)", None, "the code: denoising"),
    Configuration("mprnet(width=40, unet_step=20, full_step=16)", None, "the code: deraining"),
    Configuration("hinet", "88.67 M", _PAPER),
    Configuration("restormer", "26.1 M", "the authors"),
    Configuration("srn", "6,881,251", _RELEASED),
    Configuration("dsdeblur(channels=1)", "3,871,715", _RELEASED),
    Configuration("xydeblur", "4,918,627", _RELEASED),
    Configuration("ddnet(channels=1)", "2,938,330", _RELEASED),
    Configuration("ifan", "10.48 M", _PAPER),
)
