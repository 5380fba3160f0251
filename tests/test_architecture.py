"""The shape of the house: who may import whom, who may print, how long a file may be, and what the package offers."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import exporter

ROOT = Path(__file__).parents[1]
LONGEST = 400

MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in ("exporter", "runtime")
    for file in sorted((ROOT / package).rglob("*.py"))
}
LOADABLE = [
    name
    for name in MODULES
    if name != "exporter.__main__"
    and (importlib.util.find_spec("torch") or not name.startswith(("exporter.autograd", "exporter.training")))
]
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def imports(name: str) -> set[str]:
    """Modules a module imports, inside functions and for type checking included."""
    found = set()
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            # ``from a import b`` is of the module a.b where there is one
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return found


def under(name: str, *tops: str) -> bool:
    """Say whether a module is one of these or inside one."""
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def modules(*tops: str) -> list[str]:
    return [name for name in MODULES if under(name, *tops)]


def test_the_parser_sees_imports():
    """The checks below would pass on an empty table."""
    assert len(MODULES) > 40
    assert "runtime.feeds" in imports("exporter.normalise")
    assert "exporter.report" in imports("exporter.commands.prune")  # inside a function
    assert "exporter.groups" in imports("exporter")  # for type checking
    assert "exporter.rules.registry" in set().union(*(imports(m) for m in modules("exporter.rules")))


# -- direction --------------------------------------------------------------------------------------------------

FORBIDDEN = {
    "runtime": ("exporter",),
    "exporter.rules": tuple(
        f"exporter.{n}"
        for n in (
            "planner",
            "widths",
            "rewriter",
            "masked",
            "prover",
            "verifier",
            "pruner",
            "report",
            "cli",
            "commands",
        )
    ),
    "exporter.slots": ("exporter.rules", "exporter.graph", "exporter.analysis", "exporter.groups", "onnx", "runtime"),
    "exporter.solve": ("exporter.rules", "exporter.graph", "exporter.analysis", "exporter.groups", "onnx", "runtime"),
    "exporter.partitions": (
        "exporter.rules",
        "exporter.graph",
        "exporter.analysis",
        "exporter.groups",
        "onnx",
        "runtime",
    ),
    "exporter.gates": ("exporter.rules", "exporter.rewriter", "exporter.analysis", "exporter.groups"),
    "exporter.masked": ("exporter.rules", "exporter.rewriter", "exporter.analysis", "exporter.groups"),
    "exporter.rewriter": ("exporter.rules", "exporter.masked", "exporter.prover", "exporter.verifier"),
    "exporter.plan": ("exporter.graph", "exporter.groups", "numpy", "onnx"),
    "exporter.errors": ("exporter.graph", "numpy", "onnx", "runtime"),
    "exporter.sparsity.check": tuple(
        f"exporter.{n}" for n in ("graph", "normalise", "functions", "codes", "calibration", "rules")
    )
    + tuple(
        f"exporter.sparsity.{n}"
        for n in ("choice", "codes", "layers", "layouts", "magnitude", "operators", "selection", "solver", "sparsifier")
    ),
}
"""What each part must not know of: the proof shares nothing with the rewrite, slots know no operator, ..."""


@pytest.mark.parametrize("part", FORBIDDEN)
def test_direction_of_imports(part):
    wrong = {m: sorted(i for i in imports(m) if under(i, *FORBIDDEN[part])) for m in modules(part)}
    assert modules(part)
    assert not {m: names for m, names in wrong.items() if names}


def test_only_the_command_line_knows_the_command_line():
    assert {m for m in MODULES if "exporter.cli" in imports(m)} == {"exporter.__main__"}
    users = {m for m in MODULES if any(under(i, "exporter.commands") for i in imports(m))}
    assert users - set(modules("exporter.commands")) == {"exporter.cli"}


def imports_at_once(name: str) -> set[str]:
    """Modules of ours that a module imports when it is imported itself."""
    found: set[str] = set()
    todo: list[ast.AST] = list(TREES[name].body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            base = node.module or ""
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
        else:
            todo += ast.iter_child_nodes(node)
    return found & MODULES.keys() - {name}


def test_no_cycles_at_import():
    """Each module can be the first one imported."""
    graph = {name: imports_at_once(name) for name in MODULES}
    assert sum(map(len, graph.values())) > 500
    order = list(TopologicalSorter(graph).static_order())  # raises where there is a cycle
    assert set(order) == set(MODULES)


def test_no_circles_at_all():
    """Also not inside functions or for type checking; the package's own names come from everywhere and do not count."""
    graph = {name: {i for i in imports(name) if i in MODULES} - {name, "exporter"} for name in MODULES}
    assert sum(map(len, graph.values())) > 1000
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)  # raises where there is a circle


# -- layers -----------------------------------------------------------------------------------------------------

ARCHITECTURE = ROOT / "docs" / "architecture.md"


def layers() -> list[tuple[str, list[str]]]:
    """The table of docs/architecture.md, from the bottom up: (layer, patterns of modules)."""
    table = ARCHITECTURE.read_text(encoding="utf-8").partition("| layer | modules |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    return [(name.strip(), re.findall(r"`([^`]+)`", patterns)) for name, patterns in rows]


def layer_of(name: str) -> int | None:
    """Index of the row a module is in: that of the longest pattern which names it or a package around it."""
    around = [name.rsplit(".", depth)[0] for depth in range(name.count("."))]
    fits = [
        (len(p), row) for row, (_, patterns) in enumerate(layers()) for p in patterns for n in around if fnmatch(n, p)
    ]
    return max(fits)[1] if fits else None


def test_the_documented_layers_are_those_of_the_code():
    where = {name: layer_of(name) for name in MODULES if "." in name}
    names = [name for name, _ in layers()]
    assert len(names) > 10
    assert not [m for m, row in where.items() if row is None], "give each new module a row of docs/architecture.md"
    down = [
        f"{m} ({names[row]}) imports {i} ({names[where[i]]})"
        for m, row in where.items()
        for i in sorted(imports(m))
        if i in where and where[i] > row
    ]
    assert not down, "the table in docs/architecture.md says that imports go upwards in it"


def test_the_documented_layers_name_no_module_that_is_gone():
    stale = [p for _, patterns in layers() for p in patterns if not any(fnmatch(m, p) for m in MODULES)]
    assert not stale


def test_files_named_in_the_architecture_exist():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    for file, function in re.findall(r"`([a-z_/]+\.py)(?:: (\w+))?", text):
        found = [p for p in (ROOT / file, ROOT / "exporter" / file) if p.is_file()]
        assert found, file
        assert not function or f"def {function}(" in found[0].read_text(encoding="utf-8"), f"{file}: {function}"


HEAVY = ("torch", "onnxruntime", "tensorrt", "safetensors", "onnxscript", "PIL")
TORCH = ("exporter.autograd", "exporter.training")
"""Packages that are torch code throughout: they import it at the top, and nobody else imports them there."""


@pytest.mark.parametrize("name", MODULES)
def test_heavy_imports_happen_inside_functions(name):
    """Also those for type checking only are not run."""
    tree = TREES[name]
    heavy = [n for n in HEAVY if n != "torch"] if under(name, *TORCH) else [*HEAVY, *TORCH]
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in guarded:
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not [n for n in named if under(n, *heavy)], f"line {node.lineno}"


# -- printing and exiting ---------------------------------------------------------------------------------------


def calls(name: str) -> set[str]:
    """What a module calls, as it is written."""
    return {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}


SPEAKING = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write", "input", "pprint"}


@pytest.mark.parametrize("name", MODULES)
def test_only_the_command_line_prints_and_exits(name):
    allowed = {
        "exporter.commands.console": SPEAKING,
        "exporter.cli": {"sys.exit"},
        "exporter.__main__": {"sys.exit"},
    }.get(name, set())
    assert not (calls(name) & SPEAKING) - allowed
    raised = {ast.unparse(n.exc) for n in ast.walk(TREES[name]) if isinstance(n, ast.Raise) and n.exc is not None}
    assert not {r for r in raised if r.startswith("SystemExit")}


def test_the_command_line_does_print():
    assert "sys.exit" in calls("exporter.cli")
    assert "print" in calls("exporter.commands.console")
    assert "deliver" in calls("exporter.commands.prune")


def test_nothing_is_unpickled_or_evaluated():
    """Models and plans are untrusted input."""
    wrong = {"eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "os.system", "yaml.load"}
    assert not {m: calls(m) & wrong for m in MODULES if calls(m) & wrong}
    for name in MODULES:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}["allow_pickle"] == "False", name


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_a_file_holds_one_idea(name):
    lines = MODULES[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST
    assert ast.get_docstring(TREES[name]), "the first line says what the file is about"


# -- what the package offers ------------------------------------------------------------------------------------


def test_all_is_sorted_and_complete():
    assert exporter.__all__ == sorted(exporter.__all__)
    assert set(exporter.__all__) == set(exporter._HOME)
    assert set(exporter.__all__) <= set(dir(exporter))


@pytest.mark.parametrize("name", exporter.__all__)
def test_public_names(name):
    """Importable, the thing it is named after, with a docstring of its own."""
    found = getattr(exporter, name)
    assert inspect.isfunction(found) if name.islower() else inspect.isclass(found)
    assert found.__name__ == name
    assert found.__module__ == f"exporter.{exporter._HOME[name]}"
    assert found.__doc__
    assert not found.__doc__.startswith(f"{name}(")  # what dataclass makes up
    if inspect.isclass(found):
        for member, value in vars(found).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert value.__doc__, f"{name}.{member}"


@pytest.mark.parametrize("name", [n for n in exporter.__all__ if n.islower()])
def test_public_functions_are_typed_and_say_what_they_raise(name):
    function = getattr(exporter, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    text = inspect.getdoc(function)
    documented = text.partition("Args:")[2].partition("Returns:")[0].replace(",", " ").replace(":", " ").split()
    assert set(signature.parameters) <= set(documented), "every argument is described"


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = exporter.nothing
    with pytest.raises(ImportError):
        from exporter import nothing  # noqa: F401


FUNCTIONS = ("compose", "score", "prune", "sparsify", "verify", "rewrite", "save", "load", "find_groups", "make_plan")


def test_names_are_functions_after_importing_submodules():
    """A module of the name of a function would hide it as soon as anybody imports the module."""
    lines = [
        "import importlib, types",
        f"for name in {LOADABLE!r}: importlib.import_module(name)",
        f"from exporter import {', '.join(exporter.__all__)}",
        "import exporter",
        f"assert not [n for n in {exporter.__all__!r} if isinstance(getattr(exporter, n), types.ModuleType)]",
        *(f"assert isinstance({n}, types.FunctionType), {n!r}" for n in FUNCTIONS),
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert set(FUNCTIONS) == {n for n in exporter.__all__ if n.islower()}


def test_no_module_is_called_like_a_public_name():
    assert not set(exporter.__all__) & {m.rpartition(".")[2] for m in modules("exporter") if m.count(".") == 1}


def test_every_public_name_has_a_docstring():
    """In all modules, not only what the package offers."""
    defined = [(m, n) for m in MODULES for n in TREES[m].body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert len(defined) > 300
    assert not [f"{m}.{n.name}" for m, n in defined if not n.name.startswith("_") and not ast.get_docstring(n)]
