"""What every test stands on: reproducible settings, packages of others, and the `threads` fixture."""

import gc
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: threads that wait by spinning slow a busy machine down eighty times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What `auto` takes depends on no calibration of this machine.
os.environ["EQUILAYERS_COSTS"] = "off"

import pytest
import torch
from hypothesis import HealthCheck, settings

import benchmarks.third_party as third_party_networks
from benchmarks.peers import import_escnn
from pages import ROOT
from peers import required

# `threads` is function-scoped and constant over the examples of one test, so it is safe under @given.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish() -> None:
    """What torch and the peers brought in stays: the garbage collector need not look through it again and again.

    Nor through what compilers and exporters bring in later, which is as much: full collections take 0.3 s then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 200)


@pytest.fixture(autouse=True)
def default_settings() -> Iterator[None]:
    """Seed 0 before each test; the thread count and the default dtype as they were after it."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of torch threads the test runs with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The processor, and the GPU where there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def escnn() -> types.ModuleType:
    """The peer library; without it the test is skipped, or fails where EQUILAYERS_REQUIRE_ESCNN=1."""
    return required(import_escnn, "escnn", "escnn")


@pytest.fixture(scope="session")
def third_party() -> dict[str, third_party_networks.Network]:
    """Small networks of MONAI and transformers by name; likewise with EQUILAYERS_REQUIRE_MODELS=1."""
    required(third_party_networks.versions, "monai or transformers", "models")
    found = {network.name: network for network in third_party_networks.networks(small=True)}
    gc.freeze()  # as after the collection: timings collect garbage first
    return found


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before, and nothing of it left afterwards."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a user installs it, in a folder of its own."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    done = subprocess.run([*command, str(target), str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target
