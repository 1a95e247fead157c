"""The house rules of the code, read from its syntax trees: who may import whom, and how large things get."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("equilayers", "baselines", "benchmarks")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50

# What each part of equilayers may import of the others; equilayers/__init__.py may import them all.
_MATHEMATICS = {"_checks", "groups", "functional"}
PARTS = {
    "_checks": set[str](),
    "_files": set[str](),
    "_matmul": set[str](),
    "_modules": set[str](),
    "groups": {"_checks"},
    "functional": {"_checks", "_matmul", "groups"},
    "nn": _MATHEMATICS,
    "convert": _MATHEMATICS | {"_modules", "nn"},
    "interop": _MATHEMATICS | {"nn"},
    "metrics": {"_checks", "_modules", "_matmul", "groups"},
    "losses": {"_checks", "groups", "metrics"},
    "testing": {"_checks", "_files", "_modules", "groups", "metrics"},
    "cli": {"_checks", "_files", "_modules", "groups", "metrics", "testing"},
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
ON_DEMAND = {"metrics": {"torchmetrics"}, "testing": {"hypothesis", "pytest"}}


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is the dotted name, `name` what it is called here, `eager` if it runs on import."""

    target: str
    name: str
    line: int
    eager: bool


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
    def imports(self) -> list[Import]:
        """Every import of the file, relative ones resolved."""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        return list(_imports(self.tree, package, eager=True))

    @property
    def part(self) -> str:
        """The part of equilayers it belongs to, empty for equilayers/__init__.py."""
        return _part(self.name)


def violations(root: Path) -> list[str]:
    """Every breach of the rules under `root`, as `path:line: what is wrong`; empty when the house is in order."""
    modules = _read(root)
    found = list(_cycles(modules))
    for module in modules.values():
        where = module.path.relative_to(root).as_posix()
        checks = [_package_rules(module), _star_imports(module)]
        if module.name.split(".")[0] == "equilayers":
            checks += [_part_rules(module, modules), _third_party(module), _sizes(module), _asserts(module)]
        if module.part == "nn":
            checks.append(_inheritance(module))
        found += [f"{where}:{line}: {message}" for check in checks for line, message in check]
    return found


def _read(root: Path) -> dict[str, Module]:
    modules = {}
    for path in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path, path.read_text(encoding="utf-8"))
    return modules


def _part(name: str) -> str:
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "equilayers" else ""


def _imports(node: ast.AST, package: str, eager: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, alias.asname or alias.name, node.lineno, eager)
    elif isinstance(node, ast.ImportFrom):
        ancestors = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*ancestors, *([node.module] if node.module else [])])
        for alias in node.names:
            yield Import(f"{source}.{alias.name}", alias.asname or alias.name, node.lineno, eager)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for statement in node.body:
            yield from _imports(statement, package, eager=False)
        for statement in node.orelse:
            yield from _imports(statement, package, eager)
    else:
        inside = eager and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, package, inside)


def _module_of(target: str, modules: dict[str, Module]) -> str:
    """The module an import loads: the target itself, or where the imported name stands."""
    return target if target in modules else target.rpartition(".")[0] or target


def _package_rules(module: Module) -> Iterator[tuple[int, str]]:
    package = module.name.split(".")[0]
    for item in module.imports:
        top, *rest = item.target.split(".")
        if top in ("tests", "conftest"):
            yield item.line, f"imports {item.target}; nobody imports tests"
        elif top in PACKAGES and top not in PROJECT_IMPORTS[package]:
            allowed = ", ".join(sorted(PROJECT_IMPORTS[package]))
            yield item.line, f"imports {item.target}; {package} may import {allowed}"
        elif top == "equilayers" != package and any(part.startswith("_") and part[:2] != "__" for part in rest):
            yield item.line, f"imports {item.target}; {package} may import public names of equilayers only"


def _part_rules(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    part = module.part
    if part and part not in PARTS:
        yield 1, f"{part} has no place among the parts of equilayers; give it one in tests/architecture.py"
    elif part:
        for item in module.imports:
            if item.target.split(".")[0] != "equilayers":
                continue
            other = _part(_module_of(item.target, modules))
            if other not in PARTS[part] | {part}:
                allowed = ", ".join(sorted(PARTS[part])) or "no other part"
                yield item.line, f"{part} imports {other or 'equilayers itself'}; {part} may import {allowed}"


def _third_party(module: Module) -> Iterator[tuple[int, str]]:
    allowed = RUNTIME | ON_DEMAND.get(module.part, set())
    for item in module.imports:
        top = item.target.split(".")[0]
        if item.eager and top not in allowed | sys.stdlib_module_names | set(PACKAGES):
            yield item.line, f"imports {top} at module level; import it in the function that needs it"


def _star_imports(module: Module) -> Iterator[tuple[int, str]]:
    for item in module.imports:
        if item.name == "*":
            yield item.line, f"star import of {item.target.removesuffix('.*')}; name what is imported"


def _sizes(module: Module) -> Iterator[tuple[int, str]]:
    lines = len(module.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield 1, f"{lines} lines; a file has at most {MAX_FILE_LINES}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines; a function has at most {MAX_FUNCTION_LINES}"


def _asserts(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert statement; raise ValueError or TypeError"


def _inheritance(module: Module) -> Iterator[tuple[int, str]]:
    classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    targets = {item.name: item.target for item in module.imports}
    targets |= {node.name: f"{module.name}.{node.name}" for node in classes}
    for node in classes:
        for base in node.bases:
            expression = base.value if isinstance(base, ast.Subscript) else base
            head, _, rest = ast.unparse(expression).partition(".")
            target = ".".join(filter(None, [targets.get(head, head), rest]))
            if target.startswith("equilayers.nn."):
                yield node.lineno, f"{node.name} derives from {target}; a layer derives from torch.nn.Module alone"


def _cycles(modules: dict[str, Module]) -> Iterator[str]:
    graph = {
        module.name: {_module_of(item.target, modules) for item in module.imports if item.eager} & modules.keys()
        for module in modules.values()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "cyclic import: " + " <- ".join(error.args[1])
