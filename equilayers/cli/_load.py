r"""The model that is to be checked, and its weights."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import nn

from equilayers.cli._words import EXTRA, bad, said

TORCH = (".pt", ".pth", ".bin", ".ckpt")
NESTED = ("state_dict", "model_state_dict")  # where training scripts put the weights


@contextlib.contextmanager
def importing_from_here() -> Iterator[None]:
    r"""The current directory first on the path of imports, which is afterwards as before."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def load_model(target: str) -> nn.Module:
    r"""The model that `pkg.module:name` or `file.py:name` is, or makes when it is called.

    Raises:
        BadInputError: there is no such module or name, or it makes no model.
    """
    source, colon, name = target.rpartition(":")
    if not (source and colon and all(part.isidentifier() for part in name.split("."))):
        bad("TARGET to be pkg.module:name or file.py:name", repr(target), "Name a model or what makes one.")
    found: Any = _file(Path(source)) if source.endswith(".py") else _module(source)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            bad(f"{source} to have {name}", f"no {part!r}", "Name a model, or what makes one, of that module.")
    if not isinstance(found, nn.Module):
        found = _made(name, found)
    if not isinstance(found, nn.Module):
        bad(f"{name} to be, or to make, a torch.nn.Module", type(found).__name__, "Wrap a function in a module.")
    return found


def _made(name: str, factory: Any) -> Any:
    if not callable(factory):
        return factory
    try:
        return factory()
    except (Exception, SystemExit) as error:
        hint = "Call it in Python, or add --traceback, to see where."
        bad(f"{name}() to make a model when called without arguments", said(error), hint)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            hint = "Run in the folder that holds it, or pass path/to/file.py:name."
            bad(f"a module {name}", f"no module {error.name!r}", hint)
        _not_imported(name, error)
    except (Exception, SystemExit) as error:
        _not_imported(name, error)


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        bad("TARGET to name a file that exists", path, "Name a Python file.")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        bad("TARGET to name a Python file", path, "Name a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.absolute().parent))  # where it finds its neighbours, as when it is run
    sys.modules.setdefault(name, module)  # by which its classes are looked up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        _not_imported(str(path), error)
    return module


def _not_imported(name: str, error: BaseException) -> NoReturn:
    bad(f"{name} to be imported", said(error), "Import it in Python, or add --traceback, to see where.")


def load_weights(model: nn.Module, path: Path) -> None:
    r"""Put weights from a file into the model. No pickle is run: safetensors, or `torch.load(weights_only=True)`.

    Raises:
        BadInputError: there is no such file, it is no state dict of tensors alone, or it does not fit the model.
    """
    if not path.is_file():
        bad("--weights to be a file that exists", path, "Name a .safetensors or .pt file.")
    state = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not isinstance(state, dict):
        bad("--weights to hold a state dict", f"{type(state).__name__} in {path}", "Save model.state_dict().")
    nested = next((state[key] for key in NESTED if isinstance(state.get(key), dict)), state)
    try:
        model.load_state_dict(nested)
    except (Exception, SystemExit) as error:
        bad("--weights to fit the model", f"{path}: {said(error)}", "Take the weights of this model.")


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        bad("safetensors to be installed, to read --weights", "none", f"Run {EXTRA}.")
    try:
        return load_file(path)
    except Exception as error:
        bad("--weights to be a safetensors file", f"{path}: {said(error)}", "Save it with safetensors.torch.save_file.")


def _torch(path: Path) -> Any:
    if path.suffix not in TORCH:
        bad(f"--weights to end in .safetensors or {', '.join(TORCH)}", path, "Name a file of weights.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        got = f"{path}, which weights_only=True refuses ({type(error).__name__}); nothing in it was run"
        bad("--weights to hold tensors alone", got, "Save model.state_dict(), or use safetensors.")
