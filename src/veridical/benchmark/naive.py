"""The losses written plainly: as one writes them from the paper, and as public code has them.

They stand in the benchmark where no peer has the loss, the roofline counts its work on them, and a test holds that ours
give the same numbers. Each builder takes the weights (see `Supply`) and returns (prediction, target) -> numbers.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.benchmark.measure import Call
from veridical.benchmark.supply import Supply, without_bars
from veridical.benchmark.trunks import features
from veridical.losses import FeatureLoss, loss

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ---- through a network ----


class Taps(nn.Module):
    """torchvision's layers one after the other, up to the last that is asked for; a copy of each output that is.
    BasicSR's extractor does this, and so do the many training codes that follow it.

    Args: indices: torchvision's numbers of the layers.
    """

    mean: Tensor
    std: Tensor
    layers: nn.Sequential

    def __init__(self, name: str, supply: Supply, indices: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*list(features(name, supply.tensors(name)))[: max(indices) + 1])
        self.indices = indices
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image - self.mean) / self.std
        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.indices:
                maps.append(x.clone())
        return maps


def perceptual(name: str, indices: Sequence[int]) -> Callable[[Supply], Call]:
    """Mean squared difference of the maps at these layers, summed."""

    def make(supply: Supply) -> Call:
        taps = Taps(name, supply, indices)
        return lambda x, y: _total(F.mse_loss(a, b) for a, b in zip(taps(x), taps(y.detach()), strict=True))

    return make


def style(supply: Supply) -> Call:
    """VGG16's four taps of vgg16; the Gram matrices of both images."""
    taps = Taps("vgg16", supply, [3, 8, 15, 22])

    def gram(maps: Tensor) -> Tensor:
        _, channels, height, width = maps.shape
        return torch.bmm(maps.flatten(2), maps.flatten(2).transpose(1, 2)) / (channels * height * width)

    return lambda x, y: _total(
        ((gram(a) - gram(b)) ** 2).sum((1, 2)).mean() for a, b in zip(taps(x), taps(y), strict=True)
    )


def pdl(supply: Supply) -> Call:
    """VGG16 conv4_3; the channels of each image one by one."""
    taps = Taps("vgg16", supply, [21])

    def run(x: Tensor, y: Tensor) -> Tensor:
        (a,), (b,) = taps(x), taps(y)
        total = x.new_zeros(())
        for one, other in zip(a.flatten(2), b.flatten(2), strict=True):
            for channel, channel_of_target in zip(one, other, strict=True):
                total = total + (channel.sort().values - channel_of_target.sort().values).abs().mean()
        return total / (a.shape[0] * a.shape[1])

    return run


def contextual_similarity(x: Tensor, y: Tensor, *, eps: float = 1e-5) -> Tensor:
    """CX_ij of every point i of x and j of y, the whole matrix of each image at once: (N, C, n) x 2 -> (N, n, n)."""
    center = y.mean(2, keepdim=True)
    x, y = (F.normalize(points - center, dim=1) for points in (x, y))
    distance = (1 - torch.bmm(x.transpose(1, 2), y)) / 2
    relative = distance / (distance.min(2, keepdim=True).values + eps)
    weight = torch.exp((1 - relative) / 0.5)
    return weight / weight.sum(2, keepdim=True)


def contextual(supply: Supply) -> Call:
    """VGG16 conv4_3."""
    taps = Taps("vgg16", supply, [21])

    def run(x: Tensor, y: Tensor) -> Tensor:
        (a,), (b,) = taps(x), taps(y)
        return -contextual_similarity(a.flatten(2), b.flatten(2)).max(1).values.mean(1).log()

    return run


def cobi(supply: Supply) -> Call:
    """VGG16 relu1_2, relu2_2 and relu3_2, at up to 4096 positions of each, drawn at random."""
    taps = Taps("vgg16", supply, [3, 8, 13])

    def run(x: Tensor, y: Tensor) -> Tensor:
        values = []
        for a, b, weight in zip(taps(x), taps(y), (1.0, 1.0, 0.5), strict=True):
            height, width = a.shape[2:]
            places = torch.randperm(height * width, device=a.device)[:4096]
            rows, columns = places // width / height, places % width / width
            apart = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
            near = torch.exp((1 - apart / (apart.min(1, keepdim=True).values + 1e-3)) / 0.5)
            near = near / near.sum(1, keepdim=True)
            alike = contextual_similarity(a.flatten(2)[:, :, places], b.flatten(2)[:, :, places], eps=1e-3)
            values.append(-weight * (0.9 * alike + 0.1 * near).max(1).values.mean(1).log())
        return torch.stack(values).sum(0)

    return run


class Discriminator(nn.Module):
    """One of MDF's, as released: convolution, BatchNorm and LeakyReLU as modules of their own."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]], width: int) -> None:
        super().__init__()

        def block(inputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, width, 3), nn.BatchNorm2d(width), nn.LeakyReLU(0.2, inplace=True)
            )  # fmt: skip

        self.blocks = nn.ModuleList([block(3), block(width), block(width), block(width)])
        self.tail = nn.Conv2d(width, 1, 3)
        names = {"head": "blocks.0", "body.block1": "blocks.1", "body.block2": "blocks.2", "body.block3": "blocks.3"}
        state = {}
        for key, tensor in tensors:
            block_name, _, rest = key.rpartition(".")
            layer, _, part = block_name.rpartition(".")
            place = f"{names[layer]}.{('conv', 'norm').index(part)}" if layer else "tail"
            state[f"{place}.{rest}"] = tensor
        self.load_state_dict(state, strict=False)  # num_batches_tracked is not in every file
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return [maps[0], maps[3], self.tail(x)]


def mdf(supply: Supply) -> Call:
    """The first eight discriminators one after the other, as the released code has them, on images in [-1, 1]."""
    tensors = supply.tensors("mdf-released-sisr")
    discriminators = []
    for k in range(8):
        own = [(key.removeprefix(f"{k}."), value) for key, value in tensors.items() if key.startswith(f"{k}.")]
        discriminators.append(Discriminator(own, len(tensors[f"{k}.head.conv.bias"])))

    def run(x: Tensor, y: Tensor) -> Tensor:
        x, y = 2 * x - 1, 2 * y - 1
        total = x.new_zeros(())
        for discriminator in discriminators:
            for a, b in zip(discriminator(x), discriminator(y), strict=True):
                total = total + ((a - b) ** 2).mean()
        return total

    return run


def spl(_: Supply) -> Call:
    """SPL A in evaluation mode, with our numbers: convolve, activate, then pool."""
    ours = loss("spl-a").eval().to(torch.get_default_device())
    assert isinstance(ours, FeatureLoss)
    weights = ours.distance.features.draw()

    def maps(x: Tensor) -> list[Tensor]:
        out = []
        for k in range(4):
            x = F.max_pool2d(F.leaky_relu(F.conv2d(x, weights[2 * k], weights[2 * k + 1], padding=1), 0.1), 2)
            out.append(x)
        return out

    return lambda x, y: _total(2**k * F.l1_loss(a, b) for k, (a, b) in enumerate(zip(maps(x), maps(y), strict=True)))


def fmlc(supply: Supply) -> Call:
    """transformers' own CLIP tower, after its fourth block; the image resized to 224 px and normalised."""
    from transformers import CLIPVisionModel

    folder = supply.clip_tower()
    with without_bars():
        tower: nn.Module = CLIPVisionModel.from_pretrained(folder)
    tower = tower.to(torch.get_default_device()).eval().requires_grad_(False)
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1)
        for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )

    def tokens(image: Tensor) -> Tensor:
        image = (F.interpolate(image, (224, 224), mode="bicubic", align_corners=False) - mean) / std
        return tower(pixel_values=image, output_hidden_states=True).hidden_states[4]

    return lambda x, y: F.mse_loss(tokens(x), tokens(y))


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


# ---- without a network ----


def charbonnier(x: Tensor, y: Tensor) -> Tensor:
    return (torch.sqrt((x - y) ** 2 + 1e-3**2) - 1e-3).mean()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """10 log10 of the mean squared error, from where identical images have it, per image."""
    return 10 * torch.log10(((x - y) ** 2).mean((1, 2, 3)) / 1e-8 + 1)


def edge(x: Tensor, y: Tensor) -> Tensor:
    """MPRNet's: a full 5x5 kernel over each channel, on both images."""
    row = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05], device=x.device)
    kernel = torch.outer(row, row).repeat(3, 1, 1, 1)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)

    def laplacian(image: Tensor) -> Tensor:
        small = blur(image)[:, :, ::2, ::2]
        spread = torch.zeros_like(image)
        spread[:, :, ::2, ::2] = small * 4
        return image - blur(spread)

    return charbonnier(laplacian(x), laplacian(y))


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :, :, 1:] - x[:, :, :, :-1], x[:, :, 1:, :] - x[:, :, :-1, :]


def gradient(x: Tensor, y: Tensor) -> Tensor:
    return _total((a - b).abs().mean() for a, b in zip(_slopes(x), _slopes(y), strict=True))


def total_variation(x: Tensor, y: Tensor) -> Tensor:
    return _total(slope.abs().mean() for slope in _slopes(x)) - _total(slope.abs().mean() for slope in _slopes(y))


def focal_frequency(x: Tensor, y: Tensor) -> Tensor:
    """Both spectra in full, as real and imaginary parts."""
    a, b = (torch.view_as_real(torch.fft.fft2(image, norm="ortho")) for image in (x, y))
    distance = ((a - b) ** 2).sum(-1)
    weight = torch.sqrt(distance).detach()
    weight = weight / weight.amax((2, 3), keepdim=True)
    return (weight * distance).mean()


def sharpness_q(x: Tensor) -> Tensor:
    """Q of each image, from the singular values of each patch's gradients."""
    grey = (x * torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)).sum(1)
    patches = grey.unfold(1, 8, 8).unfold(2, 8, 8).flatten(1, 2)  # (N, P, 8, 8)
    gradients = torch.stack(torch.gradient(patches, dim=(2, 3)), dim=-1)
    strong, weak = torch.linalg.svdvals(gradients.flatten(2, 3)).unbind(-1)
    ratio = (strong - weak) / (strong + weak)
    return torch.where(ratio > 0.23403, strong * ratio, 0.0).mean(1)


def sharpness_loss(x: Tensor, y: Tensor) -> Tensor:
    return sharpness_q(y) - sharpness_q(x)


def sharpness_metric(x: Tensor, _: Tensor) -> Tensor:
    return sharpness_q(x)


def absolute(x: Tensor, y: Tensor) -> Tensor:
    return F.l1_loss(x, y)


def squared(x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(x, y)
