"""The public names and signatures are those of the snapshot: nobody changes them by accident."""

import difflib

import pytest

from public_api import SNAPSHOT, snapshot

HOW = "Meant? Say old and new in CHANGELOG.md and run: python tests/public_api.py"


def difference(now: str) -> str:
    wanted = SNAPSHOT.read_text(encoding="utf-8")
    lines = difflib.unified_diff(wanted.splitlines(), now.splitlines(), "snapshot", "now", lineterm="", n=0)
    return "\n".join(lines)


def test_public_names_and_signatures_are_those_of_the_snapshot() -> None:
    for extra in ("torchmetrics", "hypothesis"):
        pytest.importorskip(extra)
    changed = difference(snapshot())
    assert not changed, f"The public interface changed:\n{changed}\n{HOW}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("equilayers.testing.assert_invariant(model, x, group", "equilayers.testing.assert_invariant(model, group, x"),
        ("equilayers.nn.OrbitPool(", "equilayers.nn.OrbitsPool("),
        ("equilayers.groups.Group.compose(g, h)\n", ""),
    ],
    ids=["arguments swapped", "class renamed", "method gone"],
)
def test_a_change_is_shown(old: str, new: str) -> None:
    now = SNAPSHOT.read_text(encoding="utf-8")
    assert old in now
    assert old.strip() in difference(now.replace(old, new))
