r"""The device that a layer runs on, as the cost model sees it, and what it charges for each count of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equilayers._matmul import has_avx512
from equilayers._torch_compat import constant_when_compiled
from equilayers.functional._costs_file import read_costs

Prices = Mapping[str, tuple[float, ...]]


class Machine(NamedTuple):
    r"""A device and how it is used.

    device: "cpu", or the name of another, such as "cuda NVIDIA A100". threads: of torch, where it is "cpu". precision:
    of products, "float32", "float64", "tf32" or "float16", which stands for bfloat16 as well.
    """

    device: str = "cpu"
    threads: int = 1
    precision: str = "float32"

    @property
    def measured(self) -> bool:
        r"""Whether its prices are those of a calibration."""
        return prices(self) is not None

    def __str__(self) -> str:
        device = self.device if self.device != "cpu" else f"cpu, {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{device}, {self.precision}"


class Roofline(NamedTuple):
    r"""Multiplications of a product and bytes of memory in a nanosecond, and nanoseconds of an operation of torch."""

    multiplications: float
    bytes: float
    operation: float


# In float32, on one thread of a processor. The first is between an AMD EPYC (Zen 4), 16 bytes, and an Intel Xeon
# (family 6, model 167), 8 bytes. The second has products at half the speed, as the EPYC held to AVX2 had once; the
# third is half of what makers say of a data-centre GPU. Neither was measured as it stands.
ROOFLINES = {
    "AVX-512": Roofline(multiplications=80, bytes=10, operation=8e3),
    "processor": Roofline(multiplications=45, bytes=10, operation=8e3),
    "GPU": Roofline(multiplications=5e3, bytes=8e2, operation=6e3),
}
PRECISIONS = {torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "float16"}
BYTES = {"float64": 8, "float16": 2}  # of a number; 4 otherwise
# How many times as fast products are as in float32, by the precision.
FASTER = {"GPU": {"float64": 0.5, "tf32": 4.0, "float16": 8.0}}
ON_PROCESSORS = {"float64": 0.5}


def machine_of(x: Tensor) -> Machine:
    r"""Where and in which precision a layer works on x."""
    precision = PRECISIONS.get(x.dtype, "float32")
    if x.device.type == "cpu":
        threads = 1 if torch.compiler.is_compiling() else torch.get_num_threads()
        return Machine("cpu", threads, precision)
    if x.device.type == "cuda" and precision == "float32" and _tf32():
        precision = "tf32"
    return Machine(_name(x.device), 1, precision)


@constant_when_compiled
def _tf32() -> bool:
    products = torch.backends.cuda.matmul
    return (
        getattr(products, "fp32_precision", None) == "tf32"
        if hasattr(products, "fp32_precision")
        else bool(products.allow_tf32)
    )


@constant_when_compiled
def _name(device: torch.device) -> str:
    r"""Of a device that is no processor, as calibrations are kept under."""
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def kind_of(machine: Machine) -> str:
    r"""Which of `ROOFLINES` holds for it."""
    if machine.device != "cpu":
        return "GPU"
    return "AVX-512" if has_avx512() else "processor"


def prices(machine: Machine) -> Prices | None:
    r"""The constants that a calibration found for this machine, by the kind of work, if there are some."""
    return read_costs(machine.device, machine.threads)


def nanoseconds(machine: Machine, quantities: Sequence[float], constants: Sequence[float] | None) -> float:
    r"""What a call, operations, numbers and multiplications take, by constants measured in float32 or the roofline."""
    line, kind = ROOFLINES[kind_of(machine)], kind_of(machine)
    if constants is None:
        numbers = [4 / line.bytes] * (len(quantities) - 3)
        constants = (0.0, line.operation, *numbers, 1 / (line.multiplications * machine.threads))
    wider = BYTES.get(machine.precision, 4) / 4
    faster = FASTER.get(kind, ON_PROCESSORS).get(machine.precision, 1.0)
    scales = (1.0, 1.0, *[wider] * (len(quantities) - 3), 1 / faster)
    return sum(q * c * s for q, c, s in zip(quantities, constants, scales, strict=True))
