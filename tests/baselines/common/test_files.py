"""Files that are whole or not there, on a disk that is full."""

import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from baselines.__main__ import main
from baselines.common.files import write_json, write_tensors
from studies import TINY, in_this_process


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 1000 bytes, which is told as a full disk is."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


WRITERS: dict[str, Callable[[Path], None]] = {
    "tensors": lambda path: write_tensors(path, {"weight": torch.zeros(10_000)}),
    "JSON": lambda path: write_json(path, list(range(10_000))),
}


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run.pt"
    path.write_text("old")
    with pytest.raises(OSError, match=rf"write: expected room for {path}, got file too large\. Make room"):
        WRITERS[what](path)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


@pytest.mark.usefixtures("full_disk")
def test_the_study_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process(monkeypatch)
    assert main([*TINY, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("write: expected room for ")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
