r"""Windows of a map, shifted ones too, in settings that rotations and mirrors of the map leave unchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equilayers._checks import Pair, check_int, check_tensor, pair_of, refuse


def window_partition(f: Tensor, window_size: int, shift: int = 0) -> Tensor:
    r"""Cut the map of a regular feature into square windows, the map rolled up and left by `shift` first.

    Args:
        f: regular feature (B, C, |G|, H, W); H and W multiples of window_size.
        window_size: w, pixels on a side.
        shift: 0, or w / 2 for the windows between those; no other shift is symmetric.

    Returns:
        (B·K, C, |G|, w, w) of the dtype and device of f, K = H·W / w^2, the windows of a sample row by row. In memory C
        is innermost, the fiber next; a view where that is the order of f and one copy where not. Differentiable.

    Raises:
        TypeError: f is no tensor, window_size or shift no int.
        ValueError: f of other axes, a map that is not made of whole windows, or another shift.

    Law: windows of a moved map are the moved windows, in another order, bitwise, for every rotation and mirror.

    Source: Liu et al. 2021, section 3.2 (arXiv:2103.14030).
    """
    caller = "window_partition"
    if check_tensor(caller, "f", f).ndim != 5:
        hint = "Windows are cut from maps of regular features."
        refuse(caller, "f of shape (B, C, |G|, H, W)", tuple(f.shape), hint)
    w, shift = _checked(caller, (f.shape[3], f.shape[4]), window_size, shift)
    maps = f.permute(0, 3, 4, 2, 1)  # (B, H, W, |G|, C), the order of memory
    maps = maps.roll((-shift, -shift), (1, 2)) if shift else maps
    windows = maps.unflatten(2, (-1, w)).unflatten(1, (-1, w)).transpose(2, 3)
    return windows.flatten(0, 2).permute(0, 4, 3, 1, 2)


def window_merge(windows: Tensor, size: int | Sequence[int], shift: int = 0) -> Tensor:
    r"""Put windows back to a map: the inverse of `window_partition`.

    Args:
        windows: (B·K, C, |G|, w, w), the K windows of a sample row by row.
        size: of the map, (H, W) or one int.
        shift: as given to `window_partition`.

    Returns:
        (B, C, |G|, H, W) of the dtype and device of windows, with C innermost in memory, the fiber next.
        Differentiable.

    Raises:
        TypeError: windows is no tensor, size or shift no int.
        ValueError: windows of other axes, or whose number is no multiple of K, and as `window_partition`.

    Law: `window_merge(window_partition(f, w, s), (H, W), s) == f`, bitwise.
    """
    caller = "window_merge"
    if check_tensor(caller, "windows", windows).ndim != 5 or windows.shape[3] != windows.shape[4]:
        hint = "Take what window_partition returns."
        refuse(caller, "windows of shape (B·K, C, |G|, w, w)", tuple(windows.shape), hint)
    height, width = pair_of(caller, "size", size, 1)
    w, shift = _checked(caller, (height, width), windows.shape[3], shift)
    rows, columns = height // w, width // w
    if windows.shape[0] % (rows * columns):
        hint = "Take what window_partition returns for a map of this size."
        refuse(caller, f"a multiple of {rows * columns} windows for size={height, width}", windows.shape[0], hint)
    maps = windows.permute(0, 3, 4, 2, 1).unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    maps = maps.roll((shift, shift), (1, 2)) if shift else maps
    return maps.permute(0, 4, 3, 1, 2)


def window_mask(
    size: int | Sequence[int],
    window_size: int,
    shift: int = 0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""What to add to the scores in each window, so that pixels from opposite edges of the map do not attend.

    A shift rolls the top rows to the bottom and the left columns to the right: windows there hold pixels that are no
    neighbours.

    Args:
        size: of the map, (H, W) or one int.
        window_size: w, pixels on a side.
        shift: as given to `window_partition`.
        dtype: of the mask, torch's default where None.
        device: likewise.

    Returns:
        (K, w^2, w^2): 0 where the pixels of a pair are neighbours on the map, -inf elsewhere. Add it to the scores
        (K, heads, w^2, w^2) as `mask[:, None]`, alone or with a relative position bias (heads, w^2, w^2).

    Raises:
        TypeError: size, window_size or shift of another type.
        ValueError: as `window_partition`.

    Law: masks of windows that the group exchanges are the same with their positions moved, bitwise.

    Source: Liu et al. 2021, section 3.2 (arXiv:2103.14030).
    """
    caller = "window_mask"
    height, width = pair_of(caller, "size", size, 1)
    w, shift = _checked(caller, (height, width), window_size, shift)
    # Rolled, the last `shift` rows and columns are those that came round.
    down, right = (torch.arange(n, device=device) >= n - shift for n in (height, width))
    regions = (2 * down[:, None] + right).unflatten(1, (-1, w)).unflatten(0, (-1, w)).transpose(1, 2).reshape(-1, w * w)
    apart = regions[:, :, None] != regions[:, None]
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, -math.inf)


def _checked(caller: str, size: Pair, window_size: int, shift: int) -> Pair:
    r"""Window size and shift; ValueError unless the windows are symmetric on the map."""
    w = check_int(caller, "window_size", window_size, 1)
    if size[0] % w or size[1] % w:
        pads = tuple(-(-n // w) * w for n in size)
        common = math.gcd(size[0], size[1])
        nearest = max(n for n in range(1, common + 1) if common % n == 0 and n <= w)
        hint = f"Pad the map to {pads}, or take window_size={nearest}."
        refuse(caller, f"a map of whole windows of window_size={w}", f"H={size[0]}, W={size[1]}", hint)
    if check_int(caller, "shift", shift, 0) not in (0, w / 2):
        works = f"shift=0 or shift={w // 2}" if w % 2 == 0 else "shift=0, or an even window_size"
        hint = f"Any other shift is lopsided under a mirror or a turn. Take {works}."
        refuse(caller, f"shift to be 0 or half of window_size={w}", shift, hint)
    return w, int(shift)
