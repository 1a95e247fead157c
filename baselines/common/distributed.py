r"""Training shared by the processes that `torchrun` starts: each works on its share of every batch.

The gradient of a batch is the sum of those of its shares, so that two processes take the steps that one would, up to
the rounding of that sum.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def place() -> tuple[int, int]:
    r"""The number of this process and how many there are: (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


@contextlib.contextmanager
def processes() -> Iterator[tuple[int, int]]:
    r"""The group of processes that torchrun started, over gloo; `place()` within it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=timedelta(days=1))  # others wait while the first one measures
    try:
        yield place()
        dist.barrier()
    finally:
        dist.destroy_process_group()


def from_first(value: T) -> T:
    r"""What the first process has, in all of them."""
    if place()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def share(size: int) -> slice:
    r"""Which of `size` samples are this process's: shares differ by one sample at most."""
    rank, count = place()
    return slice(size * rank // count, size * (rank + 1) // count)


def add_gradients(model: nn.Module) -> None:
    r"""Add the gradients of all processes up, in one message."""
    if place()[1] == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        if p.grad is None:  # a share without samples
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)
