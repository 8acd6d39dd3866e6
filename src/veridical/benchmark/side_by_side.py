"""Their calls and ours, for the pages of docs/migration: expressions that are executed as they stand.

x is the prediction and y the target, (N, 3, H, W) in [0, 1]. Where the numbers agree, the remark is empty.
"""

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One call, twice.

    Attributes: theirs, ours: expressions. loss: gradients are compared, too. within: how far the values may lie apart
                on any photograph; None where they are not the same quantity. why: what makes them differ. px: of the
                middle of each image that is looked at.
    """

    theirs: str
    ours: str
    within: float | None = None
    why: str = ""
    loss: bool = False
    px: int = 512


@dataclass(frozen=True)
class Page:
    """One peer.

    Attributes: package: what pip calls it. imports: what the expressions need. states: modules of theirs and of ours,
                of which is measured what they save.
    """

    package: str
    imports: str
    rows: tuple[Row, ...]
    states: tuple[tuple[str, str], ...] = ()


def _loss(theirs: str, ours: str, within: float | None = None, why: str = "") -> Row:
    return Row(theirs, ours, within, why, loss=True)


def _network(
    theirs: str, ours: str, within: float | None = None, why: str = "", *, loss: bool = True, px: int = 192
) -> Row:
    """Fewer px: a pretrained network takes long."""
    return Row(theirs, ours, within, why, loss, px)


_deep = functools.partial(_network, px=96)


SUM_OF_TV = "x[0, :, 1:].numel() * veridical.loss('tv')(x, y)"
"""A sum over the neighbours of a square image."""
BORDER = "reflects the border and counts it in"
CLIPPED = "negative contrast and structure count as 0 in each place"
OF_BATCH = "one error over the batch: with one image the same"
IN_BLOCKS = "shrinks in blocks from the corner; MATLAB's windows are centred"
ROUNDED = "rounds its luma to whole levels"
ADDED = "adds 1e-8 to the squared error"
TV_CONSTANT = "apart by the constant TV(y), which makes ours 0 at the target"

PAGES: dict[str, Page] = {
    "lpips": Page(
        "lpips",
        "import lpips\nimport veridical",
        (
            _network("lpips.LPIPS(net='alex')(x, y, normalize=True)", "veridical.loss('lpips')(x, y)", 1e-6),
            _network("lpips.LPIPS(net='alex')(2 * x - 1, 2 * y - 1)", "veridical.loss('lpips')(x, y)", 1e-6),
            _network(
                "lpips.LPIPS(net='alex')(x, y)",
                "veridical.loss('lpips')(x, y)",
                why="`normalize=True` forgotten: photographs at half their contrast",
            ),
            _network("lpips.LPIPS(net='vgg')(x, y, normalize=True)", "veridical.loss('lpips(net=vgg)')(x, y)", 1e-6),
            _network(
                "lpips.LPIPS(net='squeeze')(x, y, normalize=True)", "veridical.loss('lpips(net=squeeze)')(x, y)", 1e-5
            ),
            _network(
                "lpips.LPIPS(net='alex', lpips=False)(x, y, normalize=True)",
                "veridical.loss('lpips(linear=false)')(x, y)",
                1e-5,
            ),
            _network(
                "lpips.LPIPS(net='alex')(x, y, normalize=True)", "veridical.metric('lpips')(x, y)", 1e-6, loss=False
            ),
        ),
        (
            ("lpips.LPIPS(net='alex')", "veridical.loss('lpips')"),
            ("lpips.LPIPS(net='vgg')", "veridical.loss('lpips(net=vgg)')"),
        ),
    ),
    "piq": Page(
        "piq",
        "import piq\nimport veridical",
        (
            Row("piq.psnr(x, y)", "veridical.metric('psnr')(x, y)", 1e-3, ADDED),
            Row("piq.ssim(x, y, downsample=False)", "veridical.metric('ssim')(x, y)", 1e-4),
            Row(
                "piq.ssim(x, y)",
                "veridical.metric('ssim')(x, y)",
                why="shrinks first, by min(H, W) / 256 rounded, as MATLAB's ssim_index",
            ),
            _loss("piq.SSIMLoss(downsample=False)(x, y)", "veridical.loss('ssim')(x, y)", 1e-4),
            _loss("piq.SSIMLoss()(x, y)", "veridical.loss('ssim')(x, y)", why="shrinks first"),
            Row("piq.multi_scale_ssim(x, y)", "veridical.metric('ms-ssim')(x, y)", 1e-4),
            _loss("piq.MultiScaleSSIMLoss()(x, y)", "veridical.loss('ms-ssim')(x, y)", 1e-4),
            Row("piq.gmsd(x, y)", "veridical.metric('gmsd')(x, y)", 1e-6),
            Row(
                "piq.fsim(x, y)",
                "veridical.metric('fsim')(x, y)",
                1e-2,
                IN_BLOCKS,
            ),
            Row("piq.vif_p(x, y)", "veridical.metric('vif(variant=pixel)')(x, y)", 1e-3, "in float32"),
            Row("piq.brisque(x)", "veridical.metric('brisque')(x)", 1.0, "in float32"),
            _deep("piq.LPIPS()(x, y)", "veridical.loss('lpips(net=vgg)')(x, y)", 1e-6),
            _deep("piq.DISTS()(x, y)", "veridical.loss('dists')(x, y)", 1e-5, "images of up to 256 px"),
            _deep(
                "piq.ContentLoss()(x, y)",
                "veridical.loss('256*vgg16(taps=relu3_3)')(x, y)",
                1e-1,
                "adds up the 256 channels",
            ),
            _deep(
                "piq.StyleLoss()(x, y)",
                "(x[0, 0].numel() / 16) ** 2 * veridical.loss('style(taps=relu3_3)')(x, y)",
                why="its Gram matrices are not divided: a weight holds for one size of crop",
            ),
            _loss("piq.TVLoss(norm_type='l1')(x)", SUM_OF_TV, why=f"a sum over px; {TV_CONSTANT}"),
            _loss("piq.TVLoss()(x)", SUM_OF_TV, why="the root of the sum of squares over the image: another quantity"),
        ),
        (
            ("piq.LPIPS()", "veridical.loss('lpips(net=vgg)')"),
            ("piq.DISTS()", "veridical.loss('dists')"),
            ("piq.ContentLoss()", "veridical.loss('vgg16(taps=relu3_3)')"),
        ),
    ),
    "pyiqa": Page(
        "pyiqa",
        "import pyiqa\nimport veridical",
        (
            Row(
                "pyiqa.create_metric('psnr')(x, y)",
                "veridical.metric('psnr')(x, y)",
                1e-3,
                ADDED,
            ),
            Row("pyiqa.create_metric('psnry')(x, y)", "veridical.metric('psnr(channel=luma)')(x, y)", 1e-2),
            Row(
                "pyiqa.create_metric('psnry')(x, y)",
                "veridical.metric('psnr(channel=y)')(x, y)",
                why="its Y is full-range; that of super-resolution papers has 16 to 235",
            ),
            Row(
                "pyiqa.create_metric('ssimc')(x, y)",
                "veridical.metric('ssim')(x, y)",
                2e-3,
                CLIPPED,
            ),
            Row(
                "pyiqa.create_metric('ssim')(x, y)",
                "veridical.metric('ssim(channel=luma)')(x, y)",
                2e-3,
                ROUNDED,
            ),
            Row(
                "pyiqa.create_metric('ms_ssim')(x, y)",
                "veridical.metric('ms-ssim(channel=luma)')(x, y)",
                2e-3,
                ROUNDED,
            ),
            Row(
                "pyiqa.create_metric('cw_ssim')(x, y)",
                "veridical.metric('cw-ssim(levels=4, orientations=8)')(x, y)",
                1e-2,
                "rounds its luma; ours has 6 levels and 16 orientations by default, as the authors' example",
            ),
            Row("pyiqa.create_metric('vif')(x, y)", "veridical.metric('vif')(x, y)", 1e-2, "rounds its luma; float32"),
            Row(
                "pyiqa.create_metric('gmsd')(x, y)",
                "veridical.metric('gmsd')(x, y)",
                1e-3,
                "rounds its luma; leaves an odd row out",
            ),
            Row(
                "pyiqa.create_metric('fsim')(x, y)",
                "veridical.metric('fsim')(x, y)",
                1e-2,
                IN_BLOCKS,
            ),
            Row(
                "pyiqa.create_metric('niqe')(x)",
                "veridical.metric('niqe')(x)",
                1e-1,
                "counts the rounding errors of parts that are all white or black",
            ),
            Row("pyiqa.create_metric('brisque')(x)", "veridical.metric('brisque')(x)", 1.0, "in float32"),
            _deep("pyiqa.create_metric('lpips')(x, y)", "veridical.metric('lpips')(x, y)", 1e-6, loss=False),
            _deep(
                "pyiqa.create_metric('lpips-vgg')(x, y)", "veridical.metric('lpips(net=vgg)')(x, y)", 1e-6, loss=False
            ),
            _deep("pyiqa.create_metric('dists')(x, y)", "veridical.metric('dists')(x, y)", 1e-5, loss=False),
            _deep("pyiqa.create_metric('lpips', as_loss=True)(x, y)", "veridical.loss('lpips')(x, y)", 1e-6),
            _deep("pyiqa.create_metric('dists', as_loss=True)(x, y)", "veridical.loss('dists')(x, y)", 1e-5),
            _loss(
                "1 - pyiqa.create_metric('ssimc', as_loss=True)(x, y)",
                "veridical.loss('ssim')(x, y)",
                2e-3,
                CLIPPED,
            ),
            _loss(
                "pyiqa.create_metric('ssimc', as_loss=True)(x, y)",
                "veridical.loss('ssim')(x, y)",
                why="`as_loss` keeps the sign of a metric: to minimise it is to make the image worse",
            ),
        ),
        (
            ("pyiqa.create_metric('lpips-vgg', as_loss=True)", "veridical.loss('lpips(net=vgg)')"),
            ("pyiqa.create_metric('dists', as_loss=True)", "veridical.loss('dists')"),
        ),
    ),
    "torchmetrics": Page(
        "torchmetrics",
        "import torch\n"
        "import torchmetrics.image\n"
        "from torchmetrics.functional import image as tm\n"
        "import veridical\n\n"
        "luma = lambda image: (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)",
        (
            Row(
                "tm.peak_signal_noise_ratio(x, y, data_range=1.0)",
                "veridical.metric('psnr')(x, y)",
                1e-4,
                OF_BATCH,
            ),
            Row(
                "tm.structural_similarity_index_measure(x, y, data_range=1.0)",
                "veridical.metric('ssim')(x, y)",
                1e-1,
                BORDER,
            ),
            _loss(
                "1 - tm.structural_similarity_index_measure(x, y, data_range=1.0)",
                "veridical.loss('ssim')(x, y)",
                1e-1,
                BORDER,
            ),
            Row(
                "tm.multiscale_structural_similarity_index_measure(x, y, data_range=1.0)",
                "veridical.metric('ms-ssim')(x, y)",
                1e-2,
                BORDER,
            ),
            _loss(
                "1 - tm.multiscale_structural_similarity_index_measure(x, y, data_range=1.0)",
                "veridical.loss('ms-ssim')(x, y)",
                1e-2,
                BORDER,
            ),
            Row(
                "tm.visual_information_fidelity(255 * luma(x), 255 * luma(y))",
                "veridical.metric('vif(variant=pixel)')(x, y)",
                1e-3,
            ),
            Row(
                "tm.visual_information_fidelity(x, y)",
                "veridical.metric('vif(variant=pixel)')(x, y)",
                why="wants 0 to 255, which nothing warns of, and does not take the luma",
            ),
            _network(
                "tm.learned_perceptual_image_patch_similarity(x, y, net_type='alex', normalize=True)",
                "veridical.loss('lpips')(x, y)",
                1e-6,
            ),
            _network(
                "tm.learned_perceptual_image_patch_similarity(x, y, net_type='vgg', normalize=True)",
                "veridical.loss('lpips(net=vgg)')(x, y)",
                1e-6,
            ),
            _network("tm.deep_image_structure_and_texture_similarity(x, y)", "veridical.loss('dists')(x, y)", 1e-5),
            _loss("tm.total_variation(x)", SUM_OF_TV, why=f"a sum over px and over the batch; {TV_CONSTANT}"),
        ),
        (
            (
                "torchmetrics.image.LearnedPerceptualImagePatchSimilarity(net_type='vgg', normalize=True)",
                "veridical.loss('lpips(net=vgg)')",
            ),
        ),
    ),
    "kornia": Page(
        "kornia",
        "import kornia.losses\nimport kornia.metrics\nimport veridical",
        (
            Row(
                "kornia.metrics.psnr(x, y, 1.0)",
                "veridical.metric('psnr')(x, y)",
                1e-4,
                OF_BATCH,
            ),
            Row(
                "kornia.metrics.ssim(x, y, 11, padding='valid')",
                "veridical.metric('ssim')(x, y)",
                1e-4,
                "a map: take its mean",
            ),
            Row(
                "kornia.metrics.ssim(x, y, 11)",
                "veridical.metric('ssim')(x, y)",
                1e-1,
                "`padding='same'` by default: a reflected border is counted in",
            ),
            _loss(
                "kornia.losses.ssim_loss(x, y, 11, padding='valid')",
                "veridical.loss('0.5*ssim')(x, y)",
                1e-4,
                "(1 - SSIM) / 2",
            ),
            _loss(
                "kornia.losses.ssim_loss(x, y, 11)",
                "veridical.loss('0.5*ssim')(x, y)",
                1e-1,
                "(1 - SSIM) / 2, with the border",
            ),
            _loss(
                "kornia.losses.psnr_loss(x, y, 1.0)",
                "veridical.loss('psnr')(x, y)",
                why="-PSNR, which is ours less 80 dB; at the target it is -inf, ours 0",
            ),
            _loss(
                "kornia.losses.charbonnier_loss(x, y, reduction='mean')",
                "veridical.loss('charbonnier(eps=1)')(x, y)",
                1e-6,
                "eps is 1 and cannot be set: in [0, 1] it is half of L2",
            ),
            _loss(
                "kornia.losses.total_variation(x, reduction='mean').mean()",
                "veridical.loss('tv')(x, y)",
                why=TV_CONSTANT,
            ),
            _loss("kornia.losses.total_variation(x).sum()", SUM_OF_TV, why=f"a sum over px; {TV_CONSTANT}"),
        ),
    ),
    "basicsr": Page(
        "basicsr",
        "from basicsr.losses.basic_loss import CharbonnierLoss, L1Loss, MSELoss, PerceptualLoss, WeightedTVLoss\n"
        "from basicsr.metrics.niqe import calculate_niqe\n"
        "from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_psnr_pt, calculate_ssim, calculate_ssim_pt\n"
        "import veridical\n\n"
        "image = lambda t: (t[0].permute(1, 2, 0).flip(-1) * 255).round().numpy()  # (H, W, BGR), 0 to 255",
        (
            _loss("L1Loss()(x, y)", "veridical.loss('l1')(x, y)", 1e-6),
            _loss("MSELoss()(x, y)", "veridical.loss('l2')(x, y)", 1e-6),
            _loss(
                "CharbonnierLoss()(x, y)",
                "veridical.loss('charbonnier(eps=1e-6)')(x, y)",
                1e-5,
                "its eps is the square of ours; we subtract it, so that equal images give 0",
            ),
            _loss(
                "CharbonnierLoss(eps=1e-6)(x, y)",
                "veridical.loss('charbonnier')(x, y)",
                2e-3,
                "as above: 1e-6 there is 1e-3 here, the width of MPRNet and others",
            ),
            _loss("WeightedTVLoss()(x)", "veridical.loss('tv')(x, y)", why=TV_CONSTANT),
            _deep(
                "PerceptualLoss({'relu3_3': 1.0}, vgg_type='vgg16')(x, y)[0]",
                "veridical.loss('vgg16(taps=relu3_3, distance=l1)')(x, y)",
                1e-4,
            ),
            _deep(
                "PerceptualLoss({'conv5_4': 1.0})(x, y)[0]",
                "veridical.loss('vgg19(taps=conv5_4, distance=l1)')(x, y)",
                1e-4,
                "ESRGAN's",
            ),
            _deep(
                "PerceptualLoss({'conv1_2': 0.1, 'conv2_2': 0.1, 'conv3_4': 1, 'conv4_4': 1, 'conv5_4': 1})(x, y)[0]",
                "veridical.loss('vgg19', taps=['conv1_2', 'conv2_2', 'conv3_4', 'conv4_4', 'conv5_4'], "
                "tap_weights=[0.1, 0.1, 1, 1, 1], distance='l1')(x, y)",
                1e-3,
                "Real-ESRGAN's",
            ),
            _deep(
                "PerceptualLoss({'relu3_3': 1.0}, vgg_type='vgg16', perceptual_weight=0, style_weight=1.0)(x, y)[1]",
                "veridical.loss('style(taps=relu3_3)')(x, y)",
                why="the mean of |difference| over the Gram matrix; ours is the sum of squares (Johnson et al.)",
            ),
            _deep(
                "PerceptualLoss({'relu3_3': 1.0}, vgg_type='vgg16', criterion='l2')(x, y)[0]",
                "veridical.loss('vgg16(taps=relu3_3)')(x, y)",
            ),
            Row("calculate_psnr(image(x), image(y), crop_border=4)", "veridical.metric('psnr(border=4)')(x, y)", 1e-3),
            Row(
                "calculate_psnr(image(x), image(y), crop_border=4, test_y_channel=True)",
                "veridical.metric('psnr(channel=y, border=4)')(x, y)",
                1e-3,
            ),
            Row(
                "calculate_psnr_pt(x, y, crop_border=4, test_y_channel=True)",
                "veridical.metric('psnr(channel=y, border=4)')(x, y)",
                1e-3,
                ADDED,
            ),
            Row("calculate_ssim(image(x), image(y), crop_border=4)", "veridical.metric('ssim(border=4)')(x, y)", 1e-4),
            Row(
                "calculate_ssim(image(x), image(y), crop_border=4, test_y_channel=True)",
                "veridical.metric('ssim(channel=y, border=4)')(x, y)",
                1e-4,
            ),
            Row("calculate_ssim_pt(x, y, crop_border=4)", "veridical.metric('ssim(border=4)')(x, y)", 1e-4),
            Row("calculate_niqe(image(x), crop_border=0)", "veridical.metric('niqe(channel=y)')(x)", 1e-1),
        ),
        (
            (
                "PerceptualLoss({'conv5_4': 1.0})",
                "veridical.loss('vgg19(taps=conv5_4, distance=l1)')",
            ),
        ),
    ),
}
