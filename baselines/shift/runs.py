r"""The runs of `python -m baselines shift`: what one is, how it trains, and what is kept of it."""

import math
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.common.data import load_dataset
from baselines.common.files import write_json
from baselines.common.runner import Advance, Result, settings_of, stored_result
from baselines.shift.measures import consistencies, measure_detector, measure_segmentor
from baselines.shift.models import build
from baselines.shift.scenes import MOTIONS, Layout, Scenes, random_windows, scenes

FORMAT = 1  # of a run's result file; a change of what a run means or measures makes it another
BACKGROUND_WEIGHT = 0.1  # of the segmentor's loss: most pixels are background


@dataclass(frozen=True)
class Protocol:
    r"""What is trained on a data set: splits are train, test, validation (not used); grid scenes meet every shift."""

    layout: Layout
    planes: tuple[int, ...]
    splits: tuple[int, int, int]
    detector_epochs: int
    segmentor_epochs: int
    batch_size: int = 32
    lr: float = 5e-3  # the peak of one cycle
    detector_grid: int = 100
    segmentor_grid: int = 20


_LARGE = Protocol(Layout(28, 48, 16), (16, 32, 32, 64), (5000, 2000, 1), 3, 3, detector_grid=50, segmentor_grid=10)
PROTOCOLS = {
    "digits": Protocol(Layout(8, 24, 8), (16, 32, 64), (1000, 600, 17), detector_epochs=12, segmentor_epochs=16),
    "mnist": _LARGE,
    "fashion-mnist": _LARGE,
}


@dataclass(frozen=True)
class Run:
    r"""One training and its measures; task and kind are among `models.TASKS` and `models.KINDS`."""

    data: str
    data_dir: str | None
    task: str
    kind: str
    seed: int
    epochs: int
    consistency_samples: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.task}-{self.kind}-seed{self.seed}"

    def settings(self) -> Result:
        r"""Everything the result depends on."""
        protocol = asdict(PROTOCOLS[self.data])
        protocol = {key: list(value) if isinstance(value, tuple) else value for key, value in protocol.items()}
        return settings_of(self, FORMAT, protocol=protocol)


@lru_cache(maxsize=1)
def data_of(data: str, data_dir: str | None, seed: int) -> tuple[Tensor, Tensor, Tensor, Scenes, int]:
    r"""Training windows, their pixel classes and digits; test scenes; the number of digits."""
    protocol = PROTOCOLS[data]
    loaded = load_dataset(data, data_dir=data_dir, seed=seed, splits=protocol.splits)
    generator = torch.Generator().manual_seed(seed)
    train = scenes(loaded.train, loaded, protocol.layout, generator)
    x, labels = random_windows(train, generator)
    return x, labels, train.y, scenes(loaded.test, loaded, protocol.layout, generator), loaded.num_classes


@dataclass(frozen=True)
class ShiftJob:
    r"""A run that leaves its result in a folder."""

    run: Run
    out: Path

    @property
    def path(self) -> Path:
        return self.out / f"{self.run.name}.json"

    @property
    def steps(self) -> int:
        return self.run.epochs

    def finished(self) -> Result | None:
        r"""The result of an earlier invocation, or None; ValueError where it is of other settings."""
        result = stored_result("shift", self.path, self.run.settings())
        if result is not None and not {"circular", "cropped"} <= result.keys():
            got = "another file. Delete the file."
            raise ValueError(f"shift: expected {self.path} to hold a run's measures, got {got}")
        return result

    def carry_out(self, advance: Advance) -> Result:
        r"""Train, and measure before and after."""
        result = _measured(self.run, advance)
        write_json(self.path, result)
        return result


def _measured(run: Run, advance: Advance) -> Result:
    protocol = PROTOCOLS[run.data]
    x, labels, y, test, classes = data_of(run.data, run.data_dir, run.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = build(run.task, run.kind, classes, protocol.planes)
    detects = run.task == "detector"
    many = test.first(run.consistency_samples)
    few = test.first(protocol.detector_grid if detects else protocol.segmentor_grid)
    measure = measure_detector if detects else measure_segmentor
    found: Result = {}
    if detects:
        found["consistency_at_initialisation"] = consistencies(model, many, run.seed)
    key = "largest_wobble" if detects else "largest_error"
    initial = measure(model, few.first(4))
    found[f"{key}_at_initialisation"] = {motion: initial[motion][key] for motion in MOTIONS}
    started = time.perf_counter()
    _train(model, x, y if detects else labels, run, advance)
    seconds = time.perf_counter() - started
    if detects:
        found["consistency"] = consistencies(model, many, run.seed)
    parameters = sum(p.numel() for p in model.parameters())
    found |= measure(model, few)
    return {**run.settings(), "parameters": parameters, **found, "training_seconds": seconds}


def _train(model: nn.Module, x: Tensor, y: Tensor, run: Run, advance: Advance) -> None:
    r"""Adam on a one-cycle schedule; x (N, 1, H, W), y (N,) or (N, H, W), no augmentation."""
    protocol = PROTOCOLS[run.data]
    generator = torch.Generator().manual_seed(run.seed)
    weight = None
    if y.ndim > 1:
        weight = torch.ones(int(y.max()) + 1)
        weight[0] = BACKGROUND_WEIGHT
    optimizer = torch.optim.Adam(model.parameters(), lr=protocol.lr, fused=True)
    steps = run.epochs * math.ceil(len(y) / protocol.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, protocol.lr, total_steps=steps)
    for epoch in range(1, run.epochs + 1):
        model.train()
        for batch in torch.randperm(len(y), generator=generator).split(protocol.batch_size):
            loss = F.cross_entropy(model(x[batch]), y[batch], weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        advance(epoch)
