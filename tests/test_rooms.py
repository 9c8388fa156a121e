"""The house: what may import what, and what is loaded when."""

import ast
import subprocess
import sys

import pytest

from leapbench.names import PROJECT

SOURCE = PROJECT / "src" / "leapbench"
# From the bottom to the top: a room imports from rooms that stand before it, and nothing from those after.
ORDER = (
    "names", "prediction", "nowcasters", "predictors", "config", "optimizers", "records", "data", "models", "training",
    "tables", "figures", "cli", "meta", "cluster", "referee", "bench",
)  # fmt: skip


def room_of(path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path) -> set[str]:
    """Rooms that a file imports from, at its top or within its functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "leapbench":
            module = node.module.split(".")
            rooms |= {module[1]} if len(module) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("leapbench.")}
    return rooms - {"__version__"}


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def test_the_rooms_are_known():
    assert {room_of(path) for path in FILES} == set(ORDER)
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "names.py", "cli.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows_point_down(path):
    own = ORDER.index(room_of(path))
    upward = {room for room in imported(path) - {room_of(path)} if ORDER.index(room) >= own}
    assert not upward, f"{path.relative_to(SOURCE)} imports from {', '.join(upward)}, which stand above it"


def test_the_reader_of_imports_sees_them(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "from leapbench import cli\ndef f():\n    from leapbench.tables.stats import mean\nimport leapbench.data.hub\n"
    )
    assert imported(file) == {"cli", "tables", "data"}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("leapbench.prediction", "torch hydra omegaconf pandas transformers datasets matplotlib sklearn scipy"),
        ("leapbench.prediction.leap", "hydra omegaconf pandas transformers datasets matplotlib sklearn scipy yaml"),
        ("leapbench", "torch hydra omegaconf pandas transformers datasets matplotlib sklearn scipy"),
        ("leapbench.cli", "torch pandas transformers datasets matplotlib sklearn scipy"),
    ],
)
def test_what_an_import_loads(module, unwanted):
    """In a fresh interpreter."""
    code = f"import {module}, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(unwanted.split()) & set(done.stdout.split()) == set()


def test_a_run_loads_what_it_uses(tmp_path):
    """A small convolutional network on digits needs no compiler, no language models and no tables."""
    words = ["experiment=digits_fcn", "predictor=linear", "K=2", "train.steps=6", "train.interval=2", "progress=false"]
    words += [f"results_dir={tmp_path}", "schedule.warmup=0", "device=cpu"]
    code = f"import sys, runpy; sys.argv = ['train.py', *{words}]; runpy.run_path({str(PROJECT / 'train.py')!r}, "
    code += "run_name='__main__'); print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unwanted = {"torch._dynamo", "transformers", "datasets", "sklearn", "scipy", "pandas", "matplotlib", "submitit"}
    assert "completed" in done.stdout and unwanted & set(done.stdout.split()) == set()


def test_files_stay_short():
    long = {str(path.relative_to(SOURCE)): n for path in FILES if (n := len(path.read_text().splitlines())) > 310}
    assert not long
