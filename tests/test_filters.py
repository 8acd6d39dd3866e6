"""The separable filters: shifted sums on a CPU equal a convolution, and so do their gradients."""

import pytest
import torch
import torch.nn.functional as F

from veridical.core.filters import _convolve_along, convolve, convolve_separable, slide, unslide

TAPS = torch.tensor([0.1, -0.4, 0.7, 0.2, 1.5], dtype=torch.float64)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("taps", [1, 4, 5])
def test_shifted_sums_equal_a_convolution(axis, taps):
    """F.conv2d with one plane per batch entry; the second form is what a GPU runs."""
    image = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = TAPS[:taps].view((taps, 1) if axis == -2 else (1, taps))
    expected = F.conv2d(image.view(6, 1, 9, 11), kernel[None, None])
    expected = expected.view(2, 3, *expected.shape[-2:])
    torch.testing.assert_close(slide(image, TAPS[:taps], axis), expected)
    torch.testing.assert_close(_convolve_along(image, TAPS[:taps], axis, padding=0), expected)
    # 16 bits take the convolution, which sums in 32.
    half = slide(image.bfloat16(), TAPS[:taps], axis)
    torch.testing.assert_close(half.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("axis", [-2, -1])
def test_unslide_is_the_transpose_of_slide(axis):
    """<slide(x), y> = <x, unslide(y)>, in both forms."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 11, generator=generator, dtype=torch.float64)
    y = torch.randn(slide(x, TAPS, axis).shape, generator=generator, dtype=torch.float64)
    spread = unslide(y, TAPS, axis)
    torch.testing.assert_close((slide(x, TAPS, axis) * y).sum(), (x * spread).sum())
    torch.testing.assert_close(_convolve_along(y, TAPS.flip(0), axis, padding=4), spread)


@pytest.mark.parametrize("border", ["reflect", "replicate", "zero", "circular", "valid"])
def test_separable_equals_the_outer_product(border):
    """Values, and gradients to any order, with asymmetric taps of even and odd number."""
    image = torch.rand(1, 2, 8, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    column, row = TAPS, TAPS[:4]

    def separable(image):
        return convolve_separable(image, column, row, border=border)

    torch.testing.assert_close(separable(image), convolve(image, torch.outer(column, row), border=border))
    image.requires_grad_()
    assert torch.autograd.gradcheck(separable, image)
    assert torch.autograd.gradgradcheck(lambda image: separable(image).square(), image)
