"""The house's rules, read from the sources: who may import whom, how long a file may be, what is private."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "qcse"
LONGEST = 600  # lines of a file
LONGEST_FUNCTION = 60  # without its docstring
NOT_OURS = ("_C", "_get_obs")  # the compiled module; what MuJoCo's environments call their observation

# From the ground up: what stands in a row imports from its own place and from the rows before, never from later ones.
# What shares a row does not know of each other.
LAYERS = (
    {"", "errors", "files"},
    {"envs"},
    {"config"},
    {"data"},
    {"learn"},
    {"runs"},
    {"report", "collect", "bench"},
    {"cli"},
    {"__main__"},
)


def modules() -> dict[str, Path]:
    """Name below `qcse` -> file; a package is its __init__."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """Modules of `qcse` that one imports, in functions and under TYPE_CHECKING as well, with the line."""
    known = modules()
    here = name.split(".") if name else []
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "qcse":
                    yield alias.name.removeprefix("qcse").removeprefix("."), node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and (node.module or "").split(".")[0] != "qcse":
                continue
            base = package[: len(package) - node.level + 1] if node.level else []
            words = (node.module or "").split(".") if node.level else (node.module or "").split(".")[1:]
            target = ".".join([*base, *filter(None, words)])
            for alias in node.names:
                inner = f"{target}.{alias.name}".removeprefix(".")
                yield (inner if inner in known else target), node.lineno


def rank(name: str) -> int:
    top = name.split(".")[0]
    ranks = [i for i, layer in enumerate(LAYERS) if top in layer]
    assert ranks, f"qcse.{name} stands in no layer of {__file__}"
    return ranks[0]


def test_imports_go_down() -> None:
    upward = []
    for name, path in modules().items():
        for target, line in imports(name, path):
            same = name.split(".")[0] == target.split(".")[0]
            if rank(target) > rank(name) or (rank(target) == rank(name) and not same and rank(name) > 0):
                upward.append(f"{path.relative_to(ROOT)}:{line} imports qcse.{target}")
    assert not upward, "\n".join(upward)


def test_no_circles() -> None:
    known = modules()
    graph = {name: sorted({target for target, _ in imports(name, path)} - {name}) for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            pytest.fail(" -> ".join([*way[way.index(name) :], name]))
        if name in done:
            return
        for target in graph[name]:
            visit(target, [*way, name])
        done.add(name)

    for name in known:
        visit(name, [])


def test_files_are_short() -> None:
    folders = (PACKAGE, ROOT / "qcse_ext", ROOT / "tests", ROOT / "benchmarks", ROOT / "examples")
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for f in folders for path in f.rglob("*.py")}
    long = [f"{path.relative_to(ROOT)}: {size} lines" for path, size in sizes.items() if size > LONGEST]
    assert not long, "\n".join(long)


def lines_of_code(function: ast.FunctionDef) -> int:
    docstring = function.body[0] if ast.get_docstring(function) else None
    told = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - told


def test_functions_are_short() -> None:
    long = []
    for folder in (PACKAGE, ROOT / "qcse_ext", ROOT / "benchmarks", ROOT / "examples"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.FunctionDef) and lines_of_code(node) > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not long, "\n".join(long)


def test_tensor_functions_give_shapes() -> None:
    """Each public function of tensors says in brackets what shapes it takes, or names the one whose they are; a method
    may leave that to the one that it overrides."""
    told, untold = set(), []
    for folder in (PACKAGE, ROOT / "qcse_ext"):
        for path in folder.rglob("*.py"):
            for scope in ast.walk(parsed(path)):
                if not isinstance(scope, ast.Module | ast.ClassDef) or getattr(scope, "name", "").startswith("_"):
                    continue
                for node in scope.body:
                    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                        continue
                    signature = ast.unparse(node.args) + (ast.unparse(node.returns) if node.returns else "")
                    if "Tensor" not in signature or node.name in ("state_dict", "load_state_dict"):
                        continue
                    docstring = ast.get_docstring(node) or ""
                    if "[" in docstring or ":func:" in docstring:
                        told.add(node.name)
                    else:
                        untold.append((node.name, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"))
    missing = [place for name, place in untold if name not in told]
    assert not missing, "\n".join(missing)


def test_private_is_private() -> None:
    """No module imports another's private names, and none reaches into another object's private attributes."""
    found = []
    for path in modules().values():
        for node in ast.walk(parsed(path)):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("qcse")):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and not (
                isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os", "sys", "torch")
            ):
                names = [node.attr]
            found += [
                f"{path.relative_to(ROOT)}:{node.lineno} {name}"
                for name in names
                if name.startswith("_") and not name.startswith("__") and name not in NOT_OURS
            ]
    assert not found, "\n".join(found)
