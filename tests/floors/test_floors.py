"""Who may import whom, and what model code may not do: read from the syntax trees, function-level imports too."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mar_bench"
FLOORS = (
    {
        "errors",
        "spec",
        "parse",
        "checks",
        "experiment_checks",
        "points",
        "config",
        "ids",
        "records",
        "protocol",
        "selection",
    }
    | {"provenance", "locks", "console", "fetch", "published", "cluster_profile"},
    {"schedules", "orders", "diffusion", "noise", "official"},
    {"tokenizers", "backbones", "heads", "rivals"},
    {"model", "sampler", "build"},
    {
        "data",
        "latents",
        "distributed",
        "flops",
        "train",
        "evaluate",
        "metrics",
        "features",
        "references",
        "scores",
        "image_sets",
        "timing",
        "convert",
    },
    {
        "jobs",
        "graph",
        "ledger",
        "snapshot",
        "slurm",
        "cluster_plan",
        "cluster_work",
        "run_here",
        "submit",
        "cluster_status",
        "planning",
        "pipeline",
        "launch",
        "together",
        "rehearse",
        "progress",
        "report",
        "cli",
        "eval_sets",
        "verify",
        "neighbours",
        "collect",
    },
)
WORDS, MATHEMATICS, PARTS = FLOORS[:3]
SHARED_INSIDE_A_FOLDER = {"base", "layers"}
LIGHT = {"omegaconf", "yaml", "tabulate"}
MODEL_CODE = PARTS | {"model", "sampler", "diffusion"}


@dataclass(frozen=True)
class Import:
    """``name`` is a module, or what is taken from one; ``late`` where it stands inside a function."""

    name: str
    line: int
    late: bool


def trees() -> dict[str, ast.Module]:
    """Module name without the package's -> syntax tree; the package itself is ''."""
    out = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        out[".".join(p for p in parts if p != "__init__")] = ast.parse(path.read_text(), str(path))
    return out


TREES = trees()
every_module = pytest.mark.parametrize("module", [m for m in TREES if m])


def imports(module: str) -> list[Import]:
    found = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are written in full"
            found.extend(Import(f"{node.module}.{alias.name}", node.lineno, late) for alias in node.names)
        late = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, late)

    visit(TREES[module], False)
    return found


def ours(module: str, late: bool = True) -> set[str]:
    """The package's modules that ``module`` imports; without ``late``, when it is imported itself."""
    out = set()
    for item in imports(module):
        top, _, rest = item.name.partition(".")
        if top == PACKAGE.name and (late or not item.late):
            out.add(rest if rest in TREES else rest.rpartition(".")[0])
    return out - {""}


def others(module: str, late: bool = True) -> set[str]:
    """Top names of third-party packages that ``module`` imports."""
    names = {item.name.split(".")[0] for item in imports(module) if late or not item.late}
    return names - sys.stdlib_module_names - {PACKAGE.name}


def behind(module: str, late: bool = False) -> set[str]:
    """Everything of the package that importing ``module`` imports; with ``late``, that calling it may import."""
    seen: set[str] = set()
    left = [module]
    while left:
        now = left.pop()
        if now not in seen:
            seen.add(now)
            left.extend(ours(now, late))
    return seen


def floor(module: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if module.split(".")[0] in names)


def test_every_module_stands_on_one_floor():
    tops = {m.split(".")[0] for m in TREES if m}
    assert tops == set().union(*FLOORS), "a new module needs a floor, an old one may be gone"
    assert sum(map(len, FLOORS)) == len(tops)


@every_module
def test_imports_go_down_or_stay(module):
    above = [other for other in ours(module) if floor(other) > floor(module)]
    assert not above, f"{module} stands below {above}"


def test_no_two_modules_import_each_other():
    graph = {module: ours(module) for module in TREES if module}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("module", sorted(WORDS))
def test_words_are_light(module):
    heavy = others(module) - LIGHT
    assert heavy <= ({"torch"} if module == "provenance" else set())
    assert not heavy & others(module, late=False)


@pytest.mark.parametrize("module", sorted(MATHEMATICS))
def test_mathematics_has_no_modules_and_touches_no_file(module):
    assert others(module) <= {"numpy", "torch"}
    assert not [i for i in imports(module) if i.name.startswith(("torch.nn", "pathlib", "os.", "io."))]
    for node in ast.walk(TREES[module]):
        assert not (isinstance(node, ast.Attribute) and node.attr in ("Module", "Parameter", "load", "save"))
        assert not (isinstance(node, ast.Name) and node.id == "open")


@pytest.mark.parametrize("module", [m for m in TREES if m.split(".")[0] in PARTS and "." in m])
def test_siblings_share_the_base_alone(module):
    folder, name = module.split(".")
    for other in ours(module):
        top, _, rest = other.partition(".")
        assert top not in PARTS or (top == folder and rest in SHARED_INSIDE_A_FOLDER), f"{module} imports {other}"
    assert name not in SHARED_INSIDE_A_FOLDER or not any(o.startswith(f"{folder}.") for o in ours(module))


@pytest.mark.parametrize("module", [m for m in TREES if m.split(".")[0] == "report"])
def test_reports_read_records_and_never_train(module):
    assert not behind(module, late=True) & {"model", "train", "pipeline", "build", "jobs"}
    heavy = {"torch", "timm", "submitit"}
    assert not {name for m in behind(module) for name in others(m, late=False)} & heavy
    assert not others(module) & heavy


@pytest.mark.parametrize("module", [m for m in TREES if m.split(".")[0] in MODEL_CODE])
def test_model_code_names_no_device(module):
    for node in ast.walk(TREES[module]):
        assert not (isinstance(node, ast.Attribute) and node.attr in ("cuda", "cpu")), f"{module}:{node.lineno}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value.split(":")[0] not in ("cuda", "cpu"), f"{module}:{node.lineno}"


GLOBAL_DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "normal", "bernoulli", "multinomial"}
OWN_STREAMS = {"Generator", "Philox", "RandomState"}  # numpy.random's that hold no global state


def dotted(node: ast.AST) -> str:
    """``torch.random.manual_seed`` of the expression that says so; '' of any other."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


@every_module
def test_no_global_randomness(module):
    """Only noise.seeded seeds torch's own generators, and nobody draws from them by name."""
    allowed = set()
    if module == "noise":
        seeded = next(n for n in TREES[module].body if isinstance(n, ast.FunctionDef) and n.name == "seeded")
        allowed = set(ast.walk(seeded))
    assert "random" not in {i.name.split(".")[0] for i in imports(module)}
    for node in set(ast.walk(TREES[module])) - allowed:
        top, _, name = dotted(node).rpartition(".")
        where = f"{module}:{getattr(node, 'lineno', 0)}: {dotted(node)}"
        assert "seed" not in name or top.split(".")[0] not in ("torch", "np", "numpy"), where
        assert top != "torch" or name not in GLOBAL_DRAWS, where
        assert top not in ("np.random", "numpy.random") or name in OWN_STREAMS, where


@pytest.mark.parametrize("module", ["cli", "config", "ids", "records", "jobs", "planning", "collect", "fetch"])
def test_planning_reaches_no_torch(module):
    assert not {name for m in behind(module) for name in others(m, late=False)} & {"torch", "numpy", "pandas"}


def test_planning_leaves_torch_out():
    code = "import sys, mar_bench.cli, mar_bench.ids, mar_bench.jobs, mar_bench.planning; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
