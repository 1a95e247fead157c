"""What the README says runs, and it says how to run everything."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_in_order() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    model, plain, x = names["model"], names["plain"], names["x"]
    assert isinstance(x, torch.Tensor)
    assert float(names["logit_invariance_error"](model, x, names["group"])) == 0.0  # type: ignore[operator]
    assert float(names["logit_invariance_error"](plain, x, names["group"])) > 0.0  # type: ignore[operator]


def test_a_broken_block_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        exec("import torch\nassert torch.equal(torch.zeros(1), torch.ones(1))", {})


@pytest.mark.parametrize("command", ["make study", "make test", "python -m baselines study"])
def test_commands_are_shown(command: str) -> None:
    assert command in README


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (Path(__file__).parent.parent / link).exists()
