"""Rules of the design that no linter knows, read off the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastscore"
KERNELS = ROOT / "kernels" / "fastscore_kernels"


def nodes(*folders: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every syntax node below the folders, with the file it stands in."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield path.relative_to(ROOT).as_posix(), node


def callee(node: ast.AST) -> str:
    """`tl.load` for the call `tl.load(...)`, also when it is the base of a decorator; "" for anything else."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def keywords(node: ast.AST) -> set[str | None]:
    return {keyword.arg for keyword in node.keywords} if isinstance(node, ast.Call) else set()


def test_the_dispatcher_alone_imports_by_name() -> None:
    # import-linter reads import statements only; this closes the way around it.
    users = {name for name, node in nodes(PACKAGE) if callee(node) in {"importlib.import_module", "__import__"}}
    assert users == {"fastscore/ops/_dispatch.py"}


def test_the_environment_is_read_in_one_place() -> None:
    readers = {
        name
        for name, node in nodes(PACKAGE, KERNELS)
        if isinstance(node, (ast.Attribute, ast.Name)) and ast.unparse(node) in {"os.environ", "os.getenv", "environ"}
    }
    assert readers == {"fastscore/_config.py"}


@pytest.mark.parametrize(("call", "needed"), [("tl.load", "other"), ("tl.dot", "input_precision")])
def test_kernels_say_what_the_hardware_would_decide(call: str, needed: str) -> None:
    # A lane a load masks out is undefined on a GPU without `other`; the default precision of a dot differs by version.
    silent = [
        f"{name}:{node.lineno}"
        for name, node in nodes(KERNELS)
        if isinstance(node, ast.Call) and callee(node) == call and needed not in keywords(node)
        if call != "tl.load" or "mask" in keywords(node) or len(node.args) > 1
    ]
    assert silent == []


def test_no_kernel_tunes_itself_at_run_time() -> None:
    # The first call would stall, later ones could give other bits, and an in-place output would be written repeatedly.
    tuned = [
        name
        for name, node in nodes(KERNELS)
        if isinstance(node, ast.Attribute) and node.attr in {"autotune", "heuristics"}
    ]
    assert tuned == []


def test_nothing_is_unpickled_or_evaluated() -> None:
    # Both run what a file says; checkpoints are safetensors and JSON.
    calls = {"eval", "exec", "compile", "torch.load", "torch.save", "numpy.load"}
    found = [name for name, node in nodes(PACKAGE, KERNELS) if callee(node) in calls]
    named = {alias.name for _, node in nodes(PACKAGE, KERNELS) if isinstance(node, ast.Import) for alias in node.names}
    assert found == [] and not named & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def test_every_launch_is_on_the_device_of_its_tensors() -> None:
    # Triton launches on the current device, which need not be the one of x; a CPU cannot show it.
    launches, guarded = [], set()
    for name, node in nodes(KERNELS):
        if isinstance(node, ast.With) and any(callee(item.context_expr) == "device_of" for item in node.items):
            guarded |= {(name, inner.lineno) for inner in ast.walk(node) if isinstance(inner, ast.Call)}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            launches.append((name, node.lineno))
    assert launches
    assert [launch for launch in launches if launch not in guarded] == []


@pytest.mark.parametrize(
    "call", ["torch.empty_like", "tl.atomic_add", "tl.atomic_max", "tl.atomic_xchg", "tl.randn", "tl.rand"]
)
def test_what_kernels_do_not_call(call: str) -> None:
    # Outputs are not to take an input's strides, additions not to come in any order, noise not to change with Triton.
    assert [
        f"{name}:{node.lineno}" for name, node in nodes(KERNELS) if isinstance(node, ast.Call) and callee(node) == call
    ] == []


def test_every_new_tensor_says_what_it_is_made_of() -> None:
    # A default dtype or device of the user's would have compiled code write past its end, or to nowhere.
    makers = {"empty", "zeros", "ones", "full", "arange", "linspace", "eye", "tensor", "as_tensor"}
    makers |= {"rand", "randn", "randint", "randperm"}
    silent = [
        f"{name}:{node.lineno}"
        for name, node in nodes(PACKAGE / "ops", PACKAGE / "samplers")
        if isinstance(node, ast.Call) and callee(node) in {f"torch.{maker}" for maker in makers}
        if not keywords(node) >= {"dtype", "device"}
    ]
    assert silent == []


def test_the_rules_are_checked_on_something() -> None:
    assert "tl.load" in {callee(node) for _, node in nodes(KERNELS)}
