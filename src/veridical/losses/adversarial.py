"""Adversarial losses: a discriminator learns to tell restored images from sharp ones, and its verdict is the loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from veridical.core.errors import BadOption
from veridical.core.image import at_least_float32, mean_per_image, no_autocast
from veridical.core.options import check_number, check_whole
from veridical.losses.base import Loss
from veridical.losses.discriminators import Discriminator

EPS = 1e-8  # Adam's, PyTorch's default


class AdversarialLoss(Loss):
    """A discriminator and what the two play for, which a subclass says; C(x) below is its score.

    In each step of a training the restorer goes first: its gradient comes through the discriminator as it is, which
    learns nothing from that. Then `learn` shows the discriminator the same restored images and the sharp ones, and it
    takes one step of Adam. Both are float32, autocast or not.

    Batch norm: in training mode the discriminator normalises by the batch, as it does when it learns; in evaluation
    mode by its running statistics, and the loss is a fixed function of the images. Its learning rate does not fall.

    Its state holds the discriminator and Adam's moments: three times the discriminator's size.
    """

    reference = False
    learns = True

    first_moment: Tensor
    second_moment: Tensor

    def __init__(
        self,
        *,
        discriminator: str = "srgan",
        width: int = 64,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        start: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("lr of an adversarial loss", lr, low=0)
        check_whole("start of an adversarial loss", start, low=0)
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise BadOption(f"betas of an adversarial loss must be two numbers, such as (0.9, 0.999); got {betas!r}.")
        for beta in betas:
            check_number("each of betas of an adversarial loss", beta, low=0, high=0.999999)
        self.network = Discriminator(discriminator, width=width, seed=seed)
        self.min_size = self.network.min_size
        self.lr, self.betas, self.start = float(lr), tuple(betas), start
        size = sum(weight.numel() for weight in self.network.weights())
        for moment in ("first_moment", "second_moment"):
            self.register_buffer(moment, torch.zeros(size))
        self.steps = 0
        self.active = start == 0

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return self.training  # by batch norm

    def restorer_objective(self, fake: Tensor, target: Tensor) -> Tensor:
        """Scores of the restored images -> what the restorer minimises, of the same shape."""
        raise NotImplementedError("a subclass of AdversarialLoss defines restorer_objective")

    def discriminator_objective(self, fake: Tensor, real: Tensor) -> Tensor:
        """Scores of restored and sharp images -> the scalar that the discriminator minimises."""
        raise NotImplementedError("a subclass of AdversarialLoss defines discriminator_objective")

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        if not self.active:
            return 0 * mean_per_image(at_least_float32(prediction))
        return mean_per_image(self.restorer_objective(self.network(prediction), data))

    def learn(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One step of the discriminator, after the backward pass of the restorer. Before `start` it only counts.

        Over several processes the gradients and the running statistics are averaged, so that all keep the same
        discriminator.

        Returns: discriminator: its objective. sharp, restored: mean scores. gradient: the norm of its gradient.
        """
        self.steps += 1
        was_active, self.active = self.active, self.steps >= self.start
        if not was_active:
            return dict.fromkeys(("discriminator", "sharp", "restored", "gradient"), self.first_moment.new_zeros(()))
        fake_image, real_image = (image.detach().to(self.first_moment.dtype) for image in (prediction, target))
        with torch.enable_grad(), no_autocast(prediction):  # which would reach the backward pass, too
            weights = [weight.detach().requires_grad_() for weight in self.network.weights()]
            real = self.network(real_image, weights, learning=True)
            fake = self.network(fake_image, weights, learning=True)
            objective = self.discriminator_objective(fake, real)
            gradients = torch.autograd.grad(objective, weights)
        gradient = torch.cat([each.flatten() for each in gradients])
        _average_over_processes([gradient, *self.network.statistics()])
        self._descend(gradient)
        values = {
            "discriminator": objective,
            "sharp": real.mean(),
            "restored": fake.mean(),
            "gradient": gradient.norm(),
        }
        return {name: value.detach() for name, value in values.items()}

    @torch.no_grad()
    def _descend(self, gradient: Tensor) -> None:
        """Adam, on all weights as one vector. Its state are buffers, which move, copy, save and load as buffers do."""
        beta1, beta2 = self.betas
        count = self.steps - self.start
        self.first_moment.lerp_(gradient, 1 - beta1)
        self.second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (self.second_moment / (1 - beta2**count)).sqrt_().add_(EPS)
        weights = self.network.weights()
        numbers = [weight.numel() for weight in weights]
        for weight, mean, over in zip(weights, self.first_moment.split(numbers), size.split(numbers), strict=True):
            weight.addcdiv_(mean.view_as(weight), over.view_as(weight), value=-self.lr / (1 - beta1**count))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)
        self.active = self.steps >= self.start


class GANLoss(AdversarialLoss):
    """Adversarial loss of SRGAN: how sure the discriminator is that a restored image is not a sharp one.

    The discriminator learns beside the restorer, by an Adam of its own. Beside a pixel or feature loss only:
    "l1 + vgg19 + 0.001*gan".

    Formula: restorer: -log D(x̂), the form that does not saturate; discriminator: -log D(x) - log(1 - D(x̂));
            D = sigmoid(C), C: its score; mean over its scores.
    Range:  [0, inf); log 2 where it cannot tell.
    Use:    texture that looks real where the truth cannot be known, when how it looks counts more than whether it is
            true. Small weights: 0.001 in SRGAN. discriminator=patch judges texture alone; srgan also the whole.
    Weak:   it invents detail, and PSNR and SSIM fall. Training may oscillate or collapse, and a value does not tell how
            good the images are: compare the metrics. A step costs several times that of a pixel loss. In training,
            batch norm lets images of one batch influence each other. The value at the truth is not 0.
    Args:   discriminator: srgan (one score for an image) or patch (one for each 70x70 px). width: channels of its first
            layer. lr, betas: of its Adam; lr does not fall. start: after how many steps it begins: until then it is 0
            and the discriminator does not learn, as when a restorer is first trained by a pixel loss; an automatic
            weight cannot be found for it then. seed: of the discriminator's initial weights.
    Source: SRGAN, Ledig et al. 2017, arXiv:1609.04802; Goodfellow et al. 2014, arXiv:1406.2661. The patch
            discriminator: pix2pix, Isola et al. 2017, arXiv:1611.07004.
    """

    def restorer_objective(self, fake: Tensor, target: Tensor) -> Tensor:
        del target
        return F.softplus(-fake)

    def discriminator_objective(self, fake: Tensor, real: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()


class RaGANLoss(AdversarialLoss):
    """Adversarial loss of ESRGAN, relativistic average: are restored images less real than the sharp ones are?

    The discriminator learns beside the restorer, by an Adam of its own. ESRGAN's recipe is a feature loss, a little of
    a pixel loss and this: "0.01*l1 + vgg19(taps=conv5_4, distance=l1) + 0.005*ragan".

    Formula: restorer: -log(1 - D(x, x̂)) - log D(x̂, x); discriminator: -log D(x, x̂) - log(1 - D(x̂, x));
            D(a, b) = sigmoid(C(a) - mean C(b)), the mean over the batch and all scores.
    Range:  [0, inf); 2 log 2 where it cannot tell.
    Use:    as gan; in ESRGAN's comparison it gives sharper edges and more detail, for the restorer learns from the
            sharp images too. Its weight there is 0.005, halved by the released code.
    Weak:   those of gan. The mean scores are of the batch, so images of one batch influence each other, in evaluation
            too; with several devices each compares within its own batch. Batches of one image are weak.
    Args:   discriminator, width, lr, betas, start, seed: as for gan.
    Source: ESRGAN, Wang et al. 2018, arXiv:1809.00219; Jolicoeur-Martineau 2018, arXiv:1807.00734.
    """

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return True

    def restorer_objective(self, fake: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            real = self.network(target)
        return F.softplus(real - fake.mean()) + F.softplus(real.mean() - fake)

    def discriminator_objective(self, fake: Tensor, real: Tensor) -> Tensor:
        return F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()


class HingeGANLoss(AdversarialLoss):
    """Adversarial loss with a hinge: minus the score; the discriminator stops learning from what it is sure of.

    The discriminator learns beside the restorer, by an Adam of its own. Beside a pixel or feature loss only:
    "l1 + 0.01*hinge-gan(discriminator=patch)".

    Formula: restorer: -C(x̂); discriminator: max(0, 1 - C(x)) + max(0, 1 + C(x̂)); C: its score, mean over its scores.
    Range:  (-inf, inf).
    Use:    as gan, where that saturates: the restorer's gradient does not depend on how sure the discriminator is.
    Weak:   those of gan. Unbounded, so nothing but the discriminator's own limits holds it; the source also holds its
            weights by spectral norm, which these discriminators do not have.
    Args:   discriminator, width, lr, betas, start, seed: as for gan.
    Source: Lim, Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957.
    """

    def restorer_objective(self, fake: Tensor, target: Tensor) -> Tensor:
        del target
        return -fake

    def discriminator_objective(self, fake: Tensor, real: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


class LSGANLoss(AdversarialLoss):
    """Adversarial loss by least squares: how far the score is from that of a sharp image.

    The discriminator learns beside the restorer, by an Adam of its own. Beside a pixel or feature loss only:
    "l1 + 0.01*lsgan(discriminator=patch)".

    Formula: restorer: ½ (C(x̂) - 1)²; discriminator: ½ (C(x) - 1)² + ½ C(x̂)²; C: its score, mean over its scores.
    Range:  [0, inf).
    Use:    as gan, where that saturates: images that are easily told pull hardest.
    Weak:   those of gan. Scores far from 0 and 1, as at the start, weigh by their square.
    Args:   discriminator, width, lr, betas, start, seed: as for gan.
    Source: Mao et al. 2017, arXiv:1611.04076.
    """

    def restorer_objective(self, fake: Tensor, target: Tensor) -> Tensor:
        del target
        return 0.5 * (fake - 1).square()

    def discriminator_objective(self, fake: Tensor, real: Tensor) -> Tensor:
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def _average_over_processes(tensors: Sequence[Tensor]) -> None:
    """In place; nothing where there is one process."""
    if distributed.is_available() and distributed.is_initialized():
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= distributed.get_world_size()
