r"""Shift errors of a detector and a segmentor."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from baselines.shift.scenes import MOTIONS, Scenes

BATCH = 250
KEPT = 8  # scenes whose pixel classes are kept for the figures


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    r"""The logits of images (N, 1, H, W), in evaluation mode."""
    model.eval()
    return torch.cat([model(part) for part in x.split(BATCH)])


def consistency(model: nn.Module, seen: Scenes, motion: str, generator: torch.Generator) -> float:
    r"""The share of scenes that get the same class under two random shifts each.

    Source: Zhang 2019, section 4.2 (arXiv:1904.11486).
    """
    classes = []
    for _ in range(2):
        dy, dx = (torch.randint(seen.layout.shifts, seen.y.shape, generator=generator) for _ in range(2))
        classes.append(outputs(model, seen.move(motion, dy, dx)[0]).argmax(1))
    return float((classes[0] == classes[1]).double().mean())


def consistencies(model: nn.Module, seen: Scenes, seed: int) -> dict[str, float]:
    r"""The consistency under each of MOTIONS; equal shifts for every network."""
    return {motion: consistency(model, seen, motion, torch.Generator().manual_seed(seed)) for motion in MOTIONS}


def measure_detector(model: nn.Module, seen: Scenes) -> dict[str, Any]:
    r"""Accuracy at every shift, and how far the probability of the true class wobbles over the shifts."""
    n = seen.layout.shifts
    measured = {}
    for motion in MOTIONS:
        accuracy, probability = torch.zeros(n, n), torch.zeros(n, n, len(seen.y))
        for dy, dx in itertools.product(range(n), repeat=2):
            logits = outputs(model, seen.move(motion, dy, dx)[0])
            accuracy[dy, dx] = (logits.argmax(1) == seen.y).float().mean()
            probability[dy, dx] = logits.softmax(1)[torch.arange(len(seen.y)), seen.y]
        wobble = probability.amax((0, 1)) - probability.amin((0, 1))
        measured[motion] = {
            "accuracy": float(accuracy.mean()),
            "largest_wobble": float(wobble.max()),
            "mean_wobble": float(wobble.mean()),
            "accuracy_map": rounded(accuracy),
            "probability_diagonal": rounded(probability.diagonal()),
        }
    return measured


def measure_segmentor(model: nn.Module, seen: Scenes) -> dict[str, Any]:
    r"""Pixel accuracy at every shift, and how far `f(s x)` is from `s f(x)`, where both see the same pixels.

    `error = ||f(s x) - s f(x)|| / ||s f(x)||` over logits; `changed` is the share of digit pixels that change class.
    """
    n = seen.layout.shifts
    measured: dict[str, Any] = {}
    for motion in MOTIONS:
        base = outputs(model, seen.move(motion, 0, 0)[0])
        error, changed, inked, overall = (torch.zeros(n, n, dtype=torch.float64) for _ in range(4))
        for dy, dx in itertools.product(range(n), repeat=2):
            x, labels = seen.move(motion, dy, dx)
            found = outputs(model, x)
            right = found.argmax(1) == labels
            inked[dy, dx], overall[dy, dx] = right[labels > 0].double().mean(), right.double().mean()
            there, here, ink = common(motion, base, found, labels, dy, dx)
            error[dy, dx] = (here - there).double().norm() / there.double().norm()
            changed[dy, dx] = (here.argmax(1) != there.argmax(1))[ink].double().mean()
        measured[motion] = {
            "digit_pixel_accuracy": float(inked.mean()),
            "pixel_accuracy": float(overall.mean()),
            "mean_error": float(error.sum() / (n * n - 1)),  # the shift by nothing has none
            "largest_error": float(error.max()),
            "changed_digit_pixels": float(changed.sum() / (n * n - 1)),
            "error_map": rounded(error),
        }
    measured["examples"] = examples(model, seen.first(KEPT))
    return measured


def common(motion: str, base: Tensor, found: Tensor, labels: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""The unshifted logits, those of the shift, and whether there is ink: at the pixels that both have seen."""
    if motion == "circular":
        return base.roll((dy, dx), (-2, -1)), found, labels > 0
    height, width = base.shape[-2] - dy, base.shape[-1] - dx
    return base[..., dy:, dx:], found[..., :height, :width], labels[..., :height, :width] > 0


def examples(model: nn.Module, seen: Scenes) -> list[dict[str, list[str]]]:
    r"""Images, true classes, and those found as they are and cyclically shifted by (1, 1) and back: rows of hex."""
    x, labels = seen.move("circular", 0, 0)
    plain = outputs(model, x).argmax(1)
    back = outputs(model, seen.move("circular", 1, 1)[0]).argmax(1).roll((-1, -1), (-2, -1))
    grey = (x[:, 0].clamp(0, 1) * 15).round().to(torch.int64)
    kinds = {"image": grey, "truth": labels, "found": plain, "found_shifted": back}
    return [{name: hexadecimal(maps[i]) for name, maps in kinds.items()} for i in range(len(x))]


def hexadecimal(image: Tensor) -> list[str]:
    r"""Integers 0..15 (H, W) as rows of hexadecimal digits."""
    return ["".join(f"{value:x}" for value in row) for row in image.tolist()]


def rounded(values: Tensor) -> list[Any]:
    r"""A matrix as nested lists, in the digits that a figure shows."""
    return [[round(value, 6) for value in row] for row in values.tolist()]
