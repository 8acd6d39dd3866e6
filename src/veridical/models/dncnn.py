"""DnCNN: a plain chain of convolutions that predicts the noise."""

from torch import Tensor, nn

from veridical.models.base import Restorer, check_options


class DnCNN(Restorer):
    """DnCNN: 3x3 convolutions with ReLU that predict what is wrong with the image: output = input - noise.

    Batch norm sits behind every convolution but the first and the last. With `batch_norm=False` every
    convolution has a bias and the state_dict has the keys `model.0.weight`, `model.0.bias`, `model.2.weight`,
    ... of the authors' released networks, into whose convolutions the batch norm was folded: they load
    directly (17 layers for one noise level in grey; 20 for the colour ones).

    The last convolution starts at zero, so that the untrained network returns its input: every loss starts
    from the degraded image. (The paper starts from He's random initialisation throughout.)

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1; borders are padded by zeros in every layer.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey) or 3 (RGB).
            depth: convolutions; 17 for one noise level, 20 for several or for colour.
            width: channels of the layers between.
            batch_norm: with it to train, without it for the released weights.
    Errors: ValueError for impossible options and for inputs of another shape.
    Source: Zhang, Zuo, Chen, Meng & Zhang 2017, Beyond a Gaussian Denoiser, arXiv:1608.03981.
    """

    def __init__(self, *, channels: int = 3, depth: int = 17, width: int = 64, batch_norm: bool = True) -> None:
        super().__init__()
        check_options("dncnn", channels=(channels, 1), depth=(depth, 2), width=(width, 1))
        self.channels = channels
        self.radius_px = depth
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
        ]
        for _ in range(depth - 2):
            layers.append(nn.Conv2d(width, width, kernel_size=3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        last = nn.Conv2d(width, channels, kernel_size=3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.model = nn.Sequential(*layers, last)

    def body(self, image: Tensor) -> Tensor:
        return image - self.model(image)
