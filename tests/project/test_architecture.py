"""The house rules hold, and the checker that says so can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from architecture import PACKAGES, violations
from pages import ROOT

TIDY = {
    "equilayers/__init__.py": "from . import functional, groups, nn\n",
    "equilayers/_checks.py": "import math\n",
    "equilayers/groups/__init__.py": "from equilayers.groups._cyclic import Cyclic\n\n__all__ = ['Cyclic']\n",
    "equilayers/groups/_cyclic.py": "import numpy as np\n\nfrom equilayers import _checks\n\n\nclass Cyclic: ...\n",
    "equilayers/functional.py": "import torch\n\nfrom . import groups\n",
    "equilayers/nn/__init__.py": "from ._layers import Layer\n",
    "equilayers/nn/_layers.py": "from torch import nn\n\nfrom .. import functional\n\n\nclass Layer(nn.Module): ...\n",
    "equilayers/metrics/__init__.py": "def saliency():\n    import captum\n",
    "equilayers/metrics/_classes.py": "import torchmetrics\n",
    "equilayers/losses.py": "from equilayers import metrics\n",
    "baselines/__init__.py": "import rich\n\nimport equilayers\nfrom equilayers import __version__, nn\n",
    "benchmarks/__init__.py": "import baselines\n",
    "tests/nn/test_nothing.py": "import laws\nfrom equilayers.nn import *\n",
    "tests/laws.py": "",
}

PLANTED = {
    "part": ("equilayers/functional.py", "from equilayers import nn\n", "functional imports nn"),
    "part, relative": ("equilayers/groups/_cyclic.py", "from ..functional import f\n", "groups imports functional"),
    "part, relative, bare": ("equilayers/groups/_cyclic.py", "from .. import nn\n", "groups imports nn"),
    "part, in a function": ("equilayers/_checks.py", "def f():\n    from . import groups\n", "_checks imports groups"),
    "measure of a layer": ("equilayers/metrics/x.py", "import equilayers.nn\n", "metrics imports nn"),
    "measure of a kernel": ("equilayers/losses.py", "from .functional import f\n", "losses imports functional"),
    "part of the whole": ("equilayers/nn/_layers.py", "import equilayers\n", "nn imports equilayers itself"),
    "unknown part": ("equilayers/extra.py", "", "extra has no place"),
    "private name": ("baselines/x.py", "from equilayers.groups import _cyclic\n", "public names of equilayers only"),
    "private module": ("benchmarks/x.py", "from equilayers._checks import f\n", "public names of equilayers only"),
    "library, upwards": ("equilayers/nn/_layers.py", "import baselines\n", "equilayers may import equilayers"),
    "study, upwards": ("baselines/x.py", "import benchmarks\n", "baselines may import baselines, equilayers"),
    "tests": ("benchmarks/x.py", "from tests.conftest import f\n", "nobody imports tests"),
    "third party": ("equilayers/functional.py", "import scipy.stats\n", "imports scipy at module level"),
    "third party, in a try": (
        "equilayers/nn/_layers.py",
        "try:\n    import escnn\nexcept ImportError:\n    pass\n",
        "imports escnn at module level",
    ),
    "third party, other part": ("equilayers/losses.py", "import torchmetrics\n", "imports torchmetrics at module"),
    "long file": ("equilayers/functional.py", "x = 1\n" * 401, "a file has at most 400"),
    "long function": ("equilayers/functional.py", "def f():\n" + "    x = 1\n" * 51, "f has 51 lines"),
    "long method": ("equilayers/losses.py", "class A:\n  def f():\n    '''D.'''\n" + "    x = 1\n" * 51, "f has 51"),
    "inheritance, imported": ("equilayers/nn/x.py", "from . import Layer\nclass A(Layer): ...\n", "A derives from"),
    "inheritance, local": ("equilayers/nn/_layers.py", "class A(Layer): ...\n", "A derives from"),
    "inheritance, dotted": (
        "equilayers/nn/x.py",
        "from equilayers.nn import _layers as ours\nclass A(ours.Layer): ...\n",
        "A derives from",
    ),
    "star import": ("baselines/x.py", "from equilayers.nn import *\n", "star import of equilayers.nn"),
    "assert": ("equilayers/nn/_layers.py", "def f(x):\n    assert x\n", "assert statement"),
    "cycle": ("equilayers/groups/_cyclic.py", "from equilayers.groups import Cyclic as C\n", "cyclic import"),
    "cycle, of types": (
        "equilayers/groups/_cyclic.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from equilayers.groups import Cyclic as C\n",
        "cyclic import",
    ),
    "private import": ("equilayers/losses.py", "from .metrics import _form\n", "private imports across parts pass"),
    "private import, in a function": (
        "equilayers/nn/x.py",
        "def f():\n    from ..groups import _g\n",
        "imports across",
    ),
    "detour": ("equilayers/losses.py", "from .metrics._classes import f\n", "out of its file"),
    "handed on": ("equilayers/functional.py", "from .groups import Cyclic, helper\n", "helper of equilayers.groups"),
    "splat": ("equilayers/functional.py", "def f(a, b): ...\nf(1, *settings)\n", "f takes a tuple"),
    "splat, of a call": ("equilayers/functional.py", "def f(a, b): ...\nf(*g(1))\n", "f takes a tuple"),
    "splat, imported": ("equilayers/nn/x.py", "from .. import functional as F\nF.f(*self.settings)\n", "F.f takes"),
    "splat, of a class": ("equilayers/nn/_layers.py", "Layer(*settings)\n", "Layer takes a tuple"),
    "parameters": ("equilayers/functional.py", "def f(a, b, c, d, e, f, g): ...\n", "f has 7 parameters"),
    "parameters, by name": ("equilayers/functional.py", "def f(a, /, b, c, d, *, e, f, g): ...\n", "f has 7 param"),
    "message": ("equilayers/nn/_layers.py", "if 'stride' in message: ...\n", "decides by words"),
    "message, another": ("equilayers/nn/_layers.py", "x = [y for y in z if 'stride 1' in y]\n", "decides by words"),
    "message, its start": ("equilayers/nn/x.py", "x = 1 if e.reason.startswith('it') else 2\n", "decides by words"),
    "message, a constant": ("equilayers/nn/x.py", "while found.startswith(KEPT): ...\n", "decides by words"),
    "message, of an error": ("equilayers/nn/x.py", "x = 'captum' in str(error)\n", "decides by words"),
    "caller": ("equilayers/nn/x.py", "if caller == 'Layer': ...\n", "decides by words"),
    "caller, one of": ("equilayers/nn/x.py", "if self.caller in ('a', 'b'): ...\n", "decides by words"),
    "act": ("equilayers/nn/x.py", "if act == 'image': ...\n", "decides by words"),
    "folder docstring": ("equilayers/groups/x/__init__.py", '"""D' + ".\n" * 5 + '."""\n', "a docstring of 6 lines"),
    "test folder": ("tests/convert/test_x.py", "", "tests/convert mirrors no folder"),
    "import of a test": ("tests/nn/test_x.py", "from test_nothing import f\n", "imports test_nothing.f"),
    "import of a test, dotted": ("tests/laws.py", "import nn.test_nothing\n", "imports nn.test_nothing"),
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_the_house_is_in_order() -> None:
    assert all((ROOT / package / "__init__.py").is_file() for package in PACKAGES)
    assert violations(ROOT) == []


def test_a_tidy_tree_has_no_violations(tmp_path: Path) -> None:
    plant(tmp_path, TIDY)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(("path", "text", "message"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_reported(tmp_path: Path, path: str, text: str, message: str) -> None:
    plant(tmp_path, TIDY | {path: TIDY.get(path, "") + text})
    found = violations(tmp_path, allowed={})
    assert [line for line in found if message in line and (path in line or "cyclic" in line)], found


@pytest.mark.parametrize("text", ["def f():\n    '''" + "D\n" * 60 + "'''\n" + "    x = 1\n" * 50, "x = 1\n" * 397])
def test_the_largest_sizes_pass(tmp_path: Path, text: str) -> None:
    plant(tmp_path, TIDY | {"equilayers/functional.py": TIDY["equilayers/functional.py"] + text})
    assert violations(tmp_path) == []


TOLERATED = {
    "types of others": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import escnn\n",
    "splats": "x.view(*shape)\ndef f(*args):\n    f(*x)\n    Layer(*args[1:])\nLayer(*(y for y in x))\n",
    "choices": "if mode in ('zeros', 'a b'): ...\nif 'pad' in settings or f.name.startswith('new_') or reason: ...\n",
}


@pytest.mark.parametrize("text", TOLERATED.values(), ids=TOLERATED.keys())
def test_what_is_allowed_passes(tmp_path: Path, text: str) -> None:
    plant(tmp_path, TIDY | {"equilayers/nn/_layers.py": TIDY["equilayers/nn/_layers.py"] + text})
    assert violations(tmp_path, allowed={}) == []


@pytest.mark.parametrize("count", [10, 11])
def test_private_imports_are_counted(tmp_path: Path, count: int) -> None:
    """Those of the shared floor and of the part itself are free; one more than allowed, and all are named."""
    text = "from ._checks import f\n" + "".join(f"from .metrics import _{i}\n" for i in range(count))
    plant(tmp_path, TIDY | {"equilayers/losses.py": text})
    assert len(violations(tmp_path, allowed={"private_imports": 10})) == (count if count > 10 else 0)


def test_importing_equilayers_brings_in_no_extra() -> None:
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import equilayers;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "equilayers" in loaded
    extras = {"captum", "torchmetrics", "escnn", "hypothesis", "matplotlib", "sklearn", "scipy", "rich", "baselines"}
    assert not loaded & (extras | {"jinja2", "pytest", "benchmarks", "safetensors"})
