"""Which folder may import which, and what model code may not do: read from the syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mar_bench"
LAYERS = ["testing", "cli", "cluster", "pipeline", "report", "metrics", "data", "models", "config", "records", "utils"]
TREES = {
    ".".join(p for p in path.relative_to(PACKAGE.parent).with_suffix("").parts if p != "__init__"): ast.parse(
        path.read_text(), str(path)
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}
PICK_DEVICES = ("mar_bench.models.build", "mar_bench.models.inference", "mar_bench.models.pretrained")  # not model code
MODEL_CODE = [m for m in TREES if m.startswith("mar_bench.models.") and not m.startswith(PICK_DEVICES)]
OWN_STREAMS = {"Generator", "Philox", "RandomState"}  # of numpy.random, without global state
GLOBAL_DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "normal", "bernoulli", "multinomial"}


def imported(module: str) -> set[str]:
    """All that ``module`` imports, inside functions too: our modules, and the top names of others."""
    names = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write imports in full"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in TREES else node.module for name in whole}
    return {name if name in TREES else name.split(".")[0] for name in names}


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


def test_folders_import_only_from_those_below():
    folders = {m.split(".")[1] for m in TREES if m.count(".")}
    assert folders == {*LAYERS, "__main__"}
    inside = [m for m in TREES if m not in ("mar_bench", "mar_bench.__main__")]
    upward = {
        (module, other)
        for module in inside
        for other in imported(module)
        if other.startswith("mar_bench.") and layer(other) < layer(module)
    }
    assert not upward


def test_no_import_cycles():
    graph = {m: {o for o in imported(m) if o in TREES and o != m} - {"mar_bench"} for m in TREES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(TREES)


def test_no_file_is_longer_than_350_lines():
    assert {str(p): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 350} == {}


@pytest.mark.parametrize("folder", ["report", "config", "records"])
def test_reports_plans_and_records_do_without_torch(folder):
    heavy = {m: imported(m) & {"torch", "timm", "submitit"} for m in TREES if m.startswith(f"mar_bench.{folder}.")}
    assert {m for m, names in heavy.items() if names} <= {"mar_bench.records.provenance"}


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("cli, config.ids, pipeline.graph, pipeline.plan", {"torch", "numpy", "pandas", "matplotlib"}),
        ("pipeline.execute", {"timm", "torchvision", "torch_fidelity", "vector_quantize_pytorch", "torch._dynamo"}),
    ],
)
def test_planning_and_stages_start_without_heavy_libraries(modules, heavy):
    """They take seconds, and few stages need the second set."""
    code = f"import sys, {', '.join(f'mar_bench.{name}' for name in modules.split(', '))}"
    show = f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}; {show}"], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("module", MODEL_CODE)
def test_model_code_names_no_device(module):
    for node in ast.walk(TREES[module]):
        assert not (isinstance(node, ast.Attribute) and node.attr in ("cuda", "cpu")), node.lineno
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value.split(":")[0] not in ("cuda", "cpu"), node.lineno


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


@pytest.mark.parametrize("module", TREES)
def test_no_global_randomness(module):
    """Only ``noise.seeded`` seeds torch's own generators, and nobody draws from them by name."""
    allowed = set()
    if module == "mar_bench.utils.noise":
        seeded = next(n for n in TREES[module].body if isinstance(n, ast.FunctionDef) and n.name == "seeded")
        allowed = set(ast.walk(seeded))
    assert "random" not in imported(module)
    for node in set(ast.walk(TREES[module])) - allowed:
        top, _, name = dotted(node).rpartition(".")
        where = f"{module}:{getattr(node, 'lineno', 0)}: {dotted(node)}"
        assert "seed" not in name or top.split(".")[0] not in ("torch", "np", "numpy"), where
        assert top != "torch" or name not in GLOBAL_DRAWS, where
        assert top not in ("np.random", "numpy.random") or name in OWN_STREAMS, where


@pytest.mark.parametrize("folder", ["mar_bench", "benchmarks", "slurm"])
def test_no_file_of_a_user_can_run_code(folder):
    """Nothing unpickles, evaluates texts, or gives them to a shell."""
    risky = (
        r"\bpickle\b|weights_only=False|allow_pickle=True|shell=True|yaml\.(unsafe_|full_)?load|(?<![.\w])(eval|exec)\("
    )
    sources = {path: path.read_text() for path in (PACKAGE.parent / folder).rglob("*.py")}
    found = [
        f"{path.name}: {line}" for path, text in sources.items() for line in text.splitlines() if re.search(risky, line)
    ]
    loads = [line for text in sources.values() for line in text.splitlines() if "torch.load(" in line]
    assert not found and all("weights_only=True" in line for line in loads)
