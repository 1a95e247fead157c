"""Fixed taps are the published BlurPool, as other libraries have it, where their settings coincide."""

import pytest
import torch

from equilayers.functional import blur_pool2d
from equilayers.nn import BlurPool2d

PADDING = {"reflect": "refl", "replicate": "repl", "zeros": "zero"}
SIZES = (7, 8, 9, 16, 33)


@pytest.mark.parametrize("taps", range(1, 8))
def test_kornia(taps: int) -> None:
    """It pads zeros, as many on either side: odd taps do so as well."""
    filters = pytest.importorskip("kornia.filters", reason="kornia is not installed: pip install 'equilayers[bench]'")
    for size in SIZES:
        x = torch.randn(2, 3, size, size + 1)
        theirs = filters.blur_pool2d(x, taps)
        ours = blur_pool2d(x, taps, padding_mode="zeros")
        if taps % 2:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        else:  # one row and column further on the far side, where the size has room for it
            shared = tuple(map(min, zip(ours.shape[-2:], theirs.shape[-2:], strict=True)))
            torch.testing.assert_close(ours[..., : shared[0], : shared[1]], theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", PADDING)
@pytest.mark.parametrize("taps", range(1, 8))
def test_antialiased_cnns(taps: int, mode: str) -> None:
    peer = pytest.importorskip("antialiased_cnns", reason="antialiased-cnns is not installed: 'equilayers[bench]'")
    for stride in (1, 2, 3):
        theirs, ours = peer.BlurPool(3, PADDING[mode], taps, stride), BlurPool2d(taps, stride, mode)
        for size in SIZES:
            x = torch.randn(2, 3, size, size + 1)
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
