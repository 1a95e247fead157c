"""The commands in the documentation: does the program exist, and would it take these words? Nothing is run."""

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from unittest.mock import patch

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it there
    import tomli as tomllib

from benchmarks.__main__ import OTHERS, SUBJECTS
from pages import ROOT

STUDIES = ("study", "report", "shift", "deform", "rotmnist", "vit", "finetune")
Words = list[str]


def commands(text: str) -> list[str]:
    """The command lines of a block, comments and line breaks taken out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in (" ".join(shlex.split(line, comments=True)) for line in lines) if line]


def problem(command: str) -> str:
    """Why the command would not be understood; empty where it would."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        words = words[2:]
    if words[0] == "torchrun":  # its own option and value, then `-m module`
        words = words[words.index("-m") + 1 :]
    check = PROGRAMS.get(words[0])
    return check(words[1:]) if check else f"no such program is known here: {words[0]}"


def _options(words: Words) -> Words:
    return [word.partition("=")[0] for word in words if word.startswith("-")]


@cache
def _help(module: str, *call: str) -> str:
    """What a program of ours prints, in this process: it has imported torch already. pytest has one of its own."""
    if module == "pytest":
        command = [sys.executable, "-m", *call, "--noconftest"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return run.stdout
    printed = io.StringIO()
    with patch("sys.argv", list(call)), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(module).main()
    return printed.getvalue()


def _in_help(words: Words, module: str, *call: str) -> str:
    """Whether the help of the program has every option of the words."""
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", _help(module, *call, "--help")))
    unknown = [option for option in _options(words) if option not in known]
    return f"{' '.join(call)}: no option {', '.join(unknown)}" if unknown else ""


def _make(words: Words) -> str:
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return "".join(f"make: no target {word}" for word in words if "=" not in word and word not in known)


def _pip(words: Words) -> str:
    if words[:1] != ["install"]:
        return f"pip: expected install, got {words}"
    if "-c" in words and not (ROOT / words[words.index("-c") + 1]).is_file():
        return "pip: the file of constraints is not there"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = [name for word in words for found in re.findall(r"\[(.*)\]", word) for name in found.split(",")]
    return "".join(f"pip: no extra {name}" for name in wanted if name not in extras)


def _subcommands(program: str, module: str, known: Iterable[str], own_help: bool = True) -> Callable[[Words], str]:
    def check(words: Words) -> str:
        if not words or words[0] not in known:
            return f"{program}: no command {words[:1]}"
        return _in_help(words[1:], module, program, *(words[:1] if own_help else []))

    return check


PROGRAMS: dict[str, Callable[[Words], str]] = {
    "make": _make,
    "pip": _pip,
    "pytest": lambda words: _in_help(words, "pytest", "pytest"),
    "baselines": _subcommands("baselines", "baselines.__main__", STUDIES),
    "benchmarks": _subcommands("benchmarks", "benchmarks.__main__", (*SUBJECTS, *OTHERS), own_help=False),
    "equilayers": _subcommands("equilayers", "equilayers.cli", ("check", "profile", "calibrate")),
}
