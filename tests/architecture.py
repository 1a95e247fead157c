"""The house rules of the code, read from its syntax trees: who may import whom, how large things get, what decides."""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("equilayers", "baselines", "benchmarks")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FOLDER_DOCSTRING_LINES, MAX_PARAMETERS = 400, 50, 5, 6

# What each part of equilayers may import of the others; equilayers/__init__.py may import them all.
_FLOOR = {"_checks", "_files", "_matmul", "_modules", "_tables", "_torch_compat"}
_MATHEMATICS = {"_checks", "groups", "functional"}
PARTS = {
    **{part: set[str]() for part in _FLOOR},
    "_checks": {"_torch_compat"},
    "_matmul": {"_torch_compat"},
    "_tables": {"_checks", "_torch_compat"},
    "groups": {"_checks", "_tables", "_torch_compat"},
    "functional": {"_checks", "_files", "_matmul", "_modules", "_tables", "_torch_compat", "groups"},
    "nn": _MATHEMATICS,
    "convert": _MATHEMATICS | {"_modules", "_torch_compat", "metrics", "nn", "testing"},
    "interop": _MATHEMATICS | {"nn"},
    "metrics": {"_checks", "_modules", "_matmul", "groups"},
    "losses": {"_checks", "_modules", "groups", "metrics"},
    "testing": {"_checks", "_files", "_modules", "_torch_compat", "groups", "metrics"},
    "profiling": {"_checks", "_files", "_modules", "_torch_compat", "convert", "nn"},
    "cli": {"_checks", "_files", "_modules", "convert", "functional", "groups", "metrics", "profiling", "testing"},
    "__main__": {"cli"},
}
# Which project packages each may import.
PROJECT_IMPORTS = {
    "equilayers": {"equilayers"},
    "baselines": {"equilayers", "baselines"},
    "benchmarks": {"equilayers", "baselines", "benchmarks"},
}
RUNTIME = {"torch", "numpy"}
# Parts with modules that are themselves imported only on demand, and what those may import when they are.
ON_DEMAND = {"functional": {"llvmlite", "numba"}, "metrics": {"torchmetrics"}, "testing": {"hypothesis", "pytest"}}
# Functions of `functional` with the arguments of their namesakes in torch, which are more than six.
LIKE_TORCH = {
    *("lift_conv2d", "group_conv2d", "group_conv_transpose2d", "lift_vectors_conv2d"),
    *("max_blur_pool2d", "avg_blur_pool2d"),
}
# Names and calls that stand for the words of a message; no code may decide by them.
WORDS = {"caller", "hint", "message", "reason", "why", "words", "repr", "str"}
# Folders of tests that mirror no folder of a package.
TEST_FOLDERS = {"golden", "project"}
# How many breaches of a rule pass; of the second, names that the `__init__` of a part hands on to other parts.
ALLOWED = {"private_imports": 10, "handed_on": 42}


@dataclass(frozen=True)
class Import:
    """An imported name: `target` is dotted, `name` what it is called here, `when` "load", "typing" or "call"."""

    target: str
    name: str
    line: int
    when: str


@dataclass(frozen=True)
class Module:
    """One source file under its dotted name."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of the file, relative ones resolved."""
        return list(_imports(self.tree, self.name if self.is_folder else self.name.rpartition(".")[0], "load"))

    @property
    def is_folder(self) -> bool:
        """Whether it is the `__init__` of a folder."""
        return self.path.name == "__init__.py"

    @property
    def part(self) -> str:
        """The part of equilayers it belongs to, empty for equilayers/__init__.py and outside."""
        return _part(self.name)

    @property
    def public(self) -> list[str]:
        """The names in its `__all__`."""
        values = [node.value for node in self.tree.body if ast.unparse(node).startswith("__all__ = ")]
        return list(ast.literal_eval(values[0])) if values else []

    @property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods."""
        return [node for node in self.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


Modules = dict[str, Module]
Found = Iterator[tuple[Module, int, str]]


def violations(root: Path, allowed: Mapping[str, int] = ALLOWED) -> list[str]:
    """Every breach of the rules under `root`, as `path:line: what is wrong`; empty when the house is in order."""
    modules = _read(root, *PACKAGES)
    library = {name: module for name, module in modules.items() if name.split(".")[0] == "equilayers"}
    rules = [(rule, modules) for rule in (packages, star_imports, cycles)]
    rules += [(rule, library) for rule in LIBRARY_RULES] + [(tests, _read(root, "tests"))]
    lines = []
    for rule, subject in rules:
        found = [f"{module.path.relative_to(root).as_posix()}:{line}: {what}" for module, line, what in rule(subject)]
        if len(found) > allowed.get(rule.__name__, 0):
            lines += found
    return lines


def _read(root: Path, *folders: str) -> Modules:
    modules = {}
    for path in sorted(file for folder in folders for file in (root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path, path.read_text(encoding="utf-8"))
    return modules


def _part(name: str) -> str:
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "equilayers" else ""


def _imports(node: ast.AST, package: str, when: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, alias.asname or alias.name, node.lineno, when)
    elif isinstance(node, ast.ImportFrom):
        ancestors = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*ancestors, *([node.module] if node.module else [])])
        for alias in node.names:
            yield Import(f"{source}.{alias.name}", alias.asname or alias.name, node.lineno, when)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for statement in node.body:
            yield from _imports(statement, package, "typing")
        for statement in node.orelse:
            yield from _imports(statement, package, when)
    else:
        inside = "call" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else when
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, package, inside)


def _source(target: str, modules: Modules) -> str:
    """The module an import loads: the target itself, or where the imported name stands."""
    return target if target in modules else target.rpartition(".")[0] or target


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def packages(modules: Modules) -> Found:
    """Packages import downwards, and public names only."""
    for module in modules.values():
        package = module.name.split(".")[0]
        for item in module.imports:
            top, *rest = item.target.split(".")
            if top in ("tests", "conftest"):
                yield module, item.line, f"imports {item.target}; nobody imports tests"
            elif top in PACKAGES and top not in PROJECT_IMPORTS[package]:
                allowed = ", ".join(sorted(PROJECT_IMPORTS[package]))
                yield module, item.line, f"imports {item.target}; {package} may import {allowed}"
            elif top == "equilayers" != package and any(map(_is_private, rest)):
                yield module, item.line, f"imports {item.target}; {package} may import public names of equilayers only"


def parts(modules: Modules) -> Found:
    """Parts of equilayers import what `PARTS` lets them."""
    for module in modules.values():
        part = module.part
        if part and part not in PARTS:
            yield module, 1, f"{part} has no place among the parts of equilayers; give it one in tests/architecture.py"
        for item in module.imports if part in PARTS else []:
            other = _part(_source(item.target, modules))
            if item.target.split(".")[0] == "equilayers" and other not in PARTS[part] | {part}:
                allowed = ", ".join(sorted(PARTS[part])) or "no other part"
                yield module, item.line, f"{part} imports {other or 'equilayers itself'}; {part} may import {allowed}"


def private_imports(modules: Modules) -> Found:
    """A private name of another part; the shared floor does not count."""
    for module, item in _private_imports(modules):
        what = f"imports {item.target}; {ALLOWED['private_imports']} private imports across parts pass"
        yield module, item.line, what


def detours(modules: Modules) -> Found:
    """A private name comes through the `__init__` of a part or folder, not out of its file."""
    for module, item in _private_imports(modules):
        if not modules[_source(item.target, modules)].is_folder:
            what = f"imports {item.target} out of its file; import it from the folder that hands it on"
            yield module, item.line, what


def handed_on(modules: Modules) -> Found:
    """Names that the `__init__` of a part hands on to other parts, though they are not public, are few."""
    seen = set()
    for module in modules.values():
        for item in module.imports:
            source = modules.get(_source(item.target, modules))
            if source is None or source.part in {module.part, ""} or item.target in {source.name, *seen}:
                continue
            if source.public and (name := item.target.rpartition(".")[2]) not in source.public:
                seen.add(item.target)
                yield module, item.line, f"imports {name} of {source.name}, which is not public"


def _private_imports(modules: Modules) -> Iterator[tuple[Module, Import]]:
    for module in modules.values():
        for item in module.imports:
            other = _part(_source(item.target, modules))
            if other not in _FLOOR | {module.part, ""} and any(map(_is_private, item.target.split(".")[1:])):
                yield module, item


def third_party(modules: Modules) -> Found:
    """torch and numpy are all that an import of equilayers needs."""
    for module in modules.values():
        allowed = RUNTIME | ON_DEMAND.get(module.part, set()) | sys.stdlib_module_names | set(PACKAGES)
        for item in module.imports:
            if item.when == "load" and (top := item.target.split(".")[0]) not in allowed:
                yield module, item.line, f"imports {top} at module level; import it in the function that needs it"


def star_imports(modules: Modules) -> Found:
    """Imported names are named."""
    for module in modules.values():
        for item in module.imports:
            if item.name == "*":
                yield module, item.line, f"star import of {item.target.removesuffix('.*')}; name what is imported"


def sizes(modules: Modules) -> Found:
    """A file is one subject, a function one step."""
    for module in modules.values():
        if (lines := len(module.text.splitlines())) > MAX_FILE_LINES:
            yield module, 1, f"{lines} lines; a file has at most {MAX_FILE_LINES}"
        for node in module.functions:
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > MAX_FUNCTION_LINES:
                what = f"{node.name} has {length} lines; a function has at most {MAX_FUNCTION_LINES}"
                yield module, node.lineno, what


def folder_docstrings(modules: Modules) -> Found:
    """The `__init__` of a folder says shortly what is where."""
    for module in modules.values():
        lines = len((ast.get_docstring(module.tree) or "").splitlines())
        if module.is_folder and lines > MAX_FOLDER_DOCSTRING_LINES:
            yield module, 1, f"a docstring of {lines} lines; that of a folder has at most {MAX_FOLDER_DOCSTRING_LINES}"


def parameters(modules: Modules) -> Found:
    """Settings of `functional` are validated once and passed whole."""
    for module in modules.values():
        for node in module.functions if module.part == "functional" else []:
            given = node.args
            names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls", "ctx")]) + bool(given.vararg)
            if count > MAX_PARAMETERS and node.name not in LIKE_TORCH:
                what = f"{node.name} has {count} parameters; a function has at most {MAX_PARAMETERS}"
                yield module, node.lineno, what


def splats(modules: Modules) -> Found:
    """No tuple of settings is spread over the positions of a function or class of ours.

    What remains legitimate: functions that take `*args` or hand theirs through, comprehensions (every position alike),
    and the calls of torch, such as `x.view(*shape)` and the `apply` of an autograd function.
    """
    variadic = {node.name for module in modules.values() for node in module.functions if node.args.vararg}
    for module in modules.values():
        ours = {item.name for item in module.imports if item.target.split(".")[0] == "equilayers"}
        ours |= {node.name for node in module.tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for call in module.nodes:
            if not isinstance(call, ast.Call) or not any(map(_spreads, call.args)):
                continue
            head, *rest = (called := ast.unparse(call.func)).split(".")
            if head in ours and "apply" not in rest and [head, *rest][-1] not in variadic:
                yield module, call.lineno, f"{called} takes a tuple spread over its positions; pass the settings whole"


def _spreads(argument: ast.expr) -> bool:
    """Whether it is `*x` of a tuple whose entries differ in kind."""
    alike = isinstance(argument, ast.Starred) and isinstance(argument.value, ast.GeneratorExp | ast.ListComp)
    return isinstance(argument, ast.Starred) and not alike and ast.unparse(argument.value).partition("[")[0] != "args"


def decisions(modules: Modules) -> Found:
    """Decisions hang on types and values, never on the words of a message or on who calls."""
    for module in modules.values():
        for node in module.nodes:
            if _reads_words(node):
                yield module, node.lineno, f"decides by words: {ast.unparse(node)}; compare a type or a value"


def _reads_words(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        by_name = bool(node.args) and isinstance(node.args[0], ast.Name | ast.Attribute)
        return node.func.attr in ("startswith", "endswith") and (by_name or _stands_for(node.func.value, WORDS))
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    sentence = any(isinstance(side, ast.Constant) and " " in str(side.value) for side in sides)
    contains = isinstance(node.ops[0], ast.In | ast.NotIn) and isinstance(node.left, ast.Constant)
    equals = isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn)
    return (contains and (sentence or _stands_for(sides[1], WORDS))) or (
        equals and any(_stands_for(side, {"act", *WORDS}) for side in sides)
    )


def _stands_for(node: ast.AST, names: set[str]) -> bool:
    expression = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(expression).split(".")[-1] in names


def asserts(modules: Modules) -> Found:
    """Errors of a user are ValueError or TypeError."""
    for module in modules.values():
        for node in module.nodes:
            if isinstance(node, ast.Assert):
                yield module, node.lineno, "assert statement; raise ValueError or TypeError"


def inheritance(modules: Modules) -> Found:
    """One level: torch.nn.Module, then the layer."""
    for module in modules.values():
        classes = [node for node in module.nodes if isinstance(node, ast.ClassDef) and module.part == "nn"]
        targets = {item.name: item.target for item in module.imports}
        targets |= {node.name: f"{module.name}.{node.name}" for node in classes}
        for node in classes:
            for base in node.bases:
                expression = base.value if isinstance(base, ast.Subscript) else base
                head, _, rest = ast.unparse(expression).partition(".")
                target = ".".join(filter(None, [targets.get(head, head), rest]))
                if target.startswith("equilayers.nn."):
                    what = f"{node.name} derives from {target}; a layer derives from torch.nn.Module alone"
                    yield module, node.lineno, what


def cycles(modules: Modules) -> Found:
    """No module needs itself, imports for types counted."""
    graph = {
        module.name: {_source(item.target, modules) for item in module.imports if item.when != "call"} & modules.keys()
        for module in modules.values()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield modules[error.args[1][0]], 1, "cyclic import: " + " <- ".join(error.args[1])


def tests(modules: Modules) -> Found:
    """Folders of tests mirror those of the packages, and no test file is imported."""
    for module in modules.values():
        root = module.path.parents[module.name.count(".") - 1]
        folder = module.path.parent.relative_to(root)
        homes = [root.parent / folder, root.parent / "equilayers" / folder]
        if folder.parts[:1] not in [(name,) for name in TEST_FOLDERS] and not any(home.is_dir() for home in homes):
            yield module, 1, f"tests/{folder.as_posix()} mirrors no folder of equilayers or baselines"
        for item in module.imports:
            if any(name.startswith("test_") for name in item.target.split(".")):
                yield module, item.line, f"imports {item.target}; what tests share stands in a file of its own"


LIBRARY_RULES: list[Callable[[Modules], Found]] = [
    *(parts, private_imports, detours, handed_on, third_party, sizes, folder_docstrings, parameters),
    *(splats, decisions, asserts, inheritance),
]
