"""The package as it is installed: what it holds, what it imports, what its version says."""

import re
import subprocess
import sys
from pathlib import Path

import equilayers
from pages import ROOT


def test_the_wheel_is_only_ours(wheel: Path) -> None:
    tops = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"equilayers", "bin"}
    assert (wheel / "equilayers" / "py.typed").exists()


def test_every_part_is_reached_from_the_package() -> None:
    """In a process where nothing else is imported; parts that need more are imported when they are asked for."""
    code = """
import sys
import equilayers
later = {"convert", "interop", "testing"}
assert not {f"equilayers.{name}" for name in later} & set(sys.modules)
assert later <= set(dir(equilayers))
equilayers.testing.assert_invariant, equilayers.convert.to_plain, equilayers.interop, equilayers.nn.GroupLinear
try:
    equilayers.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'equilayers' has no attribute 'nothing'\n"


PRIVATE = re.compile(
    r"\btorch\.(?!ops\.)(?:\w+\.)*_[A-Za-z]\w*|\bfrom torch[\w.]* import [^\n]*\b_[a-z]|\bfrom torch[\w.]*\._"
)


def test_private_names_of_torch_stand_in_one_file() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "equilayers").rglob("*.py")}
    assert PRIVATE.search(sources.pop("_torch_compat.py"))
    assert {name: found[0] for name, text in sources.items() if (found := PRIVATE.search(text))} == {}
    for planted in ("torch._C.thing()", "from torch._functorch import x", "from torch.utils import _pytree"):
        assert PRIVATE.search(planted)


def test_one_version() -> None:
    found = {
        file: re.search(r'^version(?: = |: )"?([\d.]+)"?$', (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)[1]
        for file in ("pyproject.toml", "CITATION.cff")
    }
    assert set(found.values()) == {equilayers.__version__}, found
