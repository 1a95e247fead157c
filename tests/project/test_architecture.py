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
    "equilayers/groups/__init__.py": "from equilayers.groups._cyclic import Cyclic\n",
    "equilayers/groups/_cyclic.py": "import numpy as np\n\nfrom equilayers import _checks\n\n\nclass Cyclic: ...\n",
    "equilayers/functional.py": "import torch\n\nfrom . import groups\n",
    "equilayers/nn/__init__.py": "from ._layers import Layer\n",
    "equilayers/nn/_layers.py": "from torch import nn\n\nfrom .. import functional\n\n\nclass Layer(nn.Module): ...\n",
    "equilayers/metrics/__init__.py": "def saliency():\n    import captum\n",
    "equilayers/metrics/_classes.py": "import torchmetrics\n",
    "equilayers/losses.py": "from equilayers import metrics\n",
    "baselines/__init__.py": "import rich\n\nimport equilayers\nfrom equilayers import __version__, nn\n",
    "benchmarks/__init__.py": "import baselines\n",
    "tests/test_nothing.py": "from equilayers.nn import *\n",
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
    found = violations(tmp_path)
    assert [line for line in found if message in line and (path in line or "cyclic" in line)], found


@pytest.mark.parametrize("text", ["def f():\n    '''" + "D\n" * 60 + "'''\n" + "    x = 1\n" * 50, "x = 1\n" * 397])
def test_the_largest_sizes_pass(tmp_path: Path, text: str) -> None:
    plant(tmp_path, TIDY | {"equilayers/functional.py": TIDY["equilayers/functional.py"] + text})
    assert violations(tmp_path) == []


def test_a_type_checking_import_is_not_eager(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import escnn\n    from equilayers import nn\n"
    plant(tmp_path, TIDY | {"equilayers/nn/_layers.py": text + TIDY["equilayers/nn/_layers.py"]})
    assert violations(tmp_path) == []


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
