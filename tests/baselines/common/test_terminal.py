"""What all commands refuse alike."""

from pathlib import Path

import pytest

from baselines.__main__ import main
from studies import refused

NUMBERS = {
    "study": ("epochs", "seeds", "workers"),
    "shift": ("epochs", "seeds", "consistency-samples"),
    "deform": ("epochs",),
    "rotmnist": ("epochs", "seeds"),
}


@pytest.mark.parametrize("command", NUMBERS)
def test_wrong_numbers_and_folders(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in NUMBERS[command]:
        for value in ("0", "-3", "abc"):
            with pytest.raises(SystemExit, match="2"):
                main([command, f"--{option}", value])
            said = capsys.readouterr().err.splitlines()[-1]
            assert f"argument --{option}: expected an int >= 1, got '{value}'" in said
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        line = refused([command, "--out", str(out)], capsys)
        assert line.startswith(f"{command}: expected --out to be a writable folder, got ")
        assert str(out) in line
