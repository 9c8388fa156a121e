"""Every example of README.md and docs/, run from its own text.

Blocks marked bash, and commands in running text, are split by bash itself and carried out in this process as printed,
with the settings of `small` appended, which make the runs small and put what they write into a folder of the tests.
A command that nobody has thought of is run like the others; what no test runs stands in NOT_RUN, with the reason.
Blocks marked python are executed; those that begin with a path are pasted into a copy of the project. Blocks marked
text are not for pasting.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from helpers import End, Lab, call, finished, meta_train, script, start
from leapbench.cluster.slurm import Site
from leapbench.config import help
from leapbench.names import PROJECT, SUMMARY
from leapbench.records.plan import PlannedRun
from networks import NETWORKS, recorded

DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python|pytest|make) [^`]+)`")
PASTED = re.compile(r"^# ((?:src|conf)/\S+)", re.MULTILINE)

NOT_RUN = {
    "make demo": "takes minutes; its commands are run one by one, see test_the_demo",
    "make test": "is what runs this test",
    "make lint": "is done on the pasted files, see test_a_predictor_is_added_as_printed",
    "pytest tests/test_contracts.py -k halfway": "is done on the pasted files too",
    "python train.py predictor=[linear,halfway]": "is done in a copy of the project with halfway in it",
    "make tune NAME=referee_micro": "takes hours; tests/referee",
    "make rates": "takes hours; tests/tables/test_tuning.py",
    "make judge NAME=referee_micro": "takes hours; tests/referee",
    "python scripts/report.py --documents": "writes into the documents; tests/tables/test_headline.py",
    "python scripts/learned.py": "writes into results/; tests/nowcasters/test_meta_results.py",
    "make bench": "takes minutes; tests/bench",
    "make sweep NAME=...": "stands for every sweep",
    "python checks/scale.py results/raw/ttb_embedded/a86a53f9211a results/raw/ttb_embedded/7705f2a8cca4 --runs 10000":
        "needs the runs of ttb_embedded, which are not in git",
    "python checks/chaos.py": "takes an hour",
    "python checks/interrupts.py": "takes ten minutes; tests/training/test_signals.py",
    "python checks/usage_line.py": "takes a Slurm",
    "python scripts/coverage.py": "writes into docs/; tests/tables/test_stats.py compares what it would write",
    "make gpu": "takes a GPU; tests/test_devices.py",
    "make gpu PYTHON=python3": "takes a GPU",
    "torchrun --nproc-per-node=2 scripts/pipeline.py experiment=layerpipe2_nano pipeline.stages=2 train.steps=200":
        "starts processes; tests/training/test_pipeline_processes.py",
    "torchrun --nproc-per-node=4 scripts/pipeline.py experiment=layerpipe2_nano pipeline.stages=4 "
    "checkpoint.every_steps=50 suite=layerpipe2 --measure": "starts processes too",
    "python checks/pipeline.py": "takes half an hour",
    "pytest -m slurm": "takes a Slurm; those tests are part of the suite where there is one",
}  # fmt: skip

TEXT = (
    "model.config.n_layer=1", "model.config.n_embd=16", "model.config.n_head=2", "dataset.tokens=16",
    "model.config.n_positions=16", "verify.sequences=4", "verify.batch_size=4", "eval.sequences=4", "eval.batch_size=4",
    "train.batch_size=4", "regime.probes=4", "regime.probe_tokens=16", "schedule.warmup=4",
)  # fmt: skip
STEPS = ("train.steps=120", "train.interval=20", "eval.every=60")  # as short as K=100 allows
HUB = (
    "dataset.source=text_files", "dataset.tokenizer=byte", "dataset.hold_out_last=null", "dataset.layout=packed",
    "model.config.vocab_size=300", "train.precision=float32",
)  # fmt: skip
DIGITS = (
    "dataset.source=digits", "dataset.examples=1200", "dataset.image.held_out=297", "dataset.image.loading=resident",
    "dataset.image.size=32", "dataset.image.resize=null", "dataset.image.channels=1", "dataset.image.classes=10",
    "dataset.image.mean=[0.5]", "dataset.image.std=[0.5]", "~dataset.image.augment", "dataset.image.repeats=1",
    "model.config.embedding_size=4", "model.config.hidden_sizes=[4,8]", "model.config.depths=[1,1]",
    "predictors.pdt.h=2", "train.batch_size=20", "train.steps=32", "train.interval=4", "train.precision=float32", "K=4",
    "leap.burn_in=2", "schedule.warmup=2", "schedule.restart_at=20", "verify.sequences=10", "verify.batch_size=10",
    "eval.every=16", "eval.sequences=10", "eval.batch_size=10", "regime.probes=4", "history_device=null",
)  # fmt: skip
META = (
    "steps=2", "batch.trajectories=1", "batch.windows=1", "targets=1", "vocabulary=4", "validation.every=1",
    "validation.windows=1", "device=cpu", "progress=false",
)  # fmt: skip
# Lines that a training may put on stderr though nothing is wrong.
REMARKS = ("wandb: ", "regime=published: nothing is calibrated", "train.precision=bfloat16: this processor takes")
# What is appended beside, or in place of, TEXT and STEPS.
APPENDED: dict[str, tuple[str, ...]] = {
    "make demo": (
        *TEXT, "train.steps=60", "train.interval=10", "eval.every=60", "K=10", "seed=0", "hydra.launcher.n_jobs=1",
    ),
    "python train.py experiment=leap_verify_gpt2": (*TEXT, *STEPS, *HUB),
    "python train.py experiment=leap_verify_gpt2_cpu": (
        *TEXT, *STEPS, "dataset.tokenizer=byte", "dataset.vocab_size=null", "model.config.vocab_size=300",
    ),
    "python train.py experiment=layerpipe2_nano": (*TEXT, "pipeline.stages=2", "train.steps=12", "train.interval=6"),
    "python train.py experiment=pdt_resnet50": DIGITS,
    "python train.py dataset=text_files dataset.path=/my/texts": (*TEXT, *STEPS),
    "python train.py -m mode=leap predictor=none,trend,average K=10 seed=0-4": (*TEXT, *STEPS, "seed=0"),
    "make sweep NAME=leap_verify_embedded": ("--dry-run",),  # tests/cluster runs sweeps
    "make sweep NAME=ttb_embedded": ("--dry-run",),
    "make sweep NAME=leap_verify_gpt2_cpu": ("--dry-run",),
    "make sweep NAME=layerpipe2_digits": ("--dry-run",),
    "make sweep NAME=trajectories": ("--dry-run",),
    "make sweep NAME=nowcasters": ("--dry-run",),
}  # fmt: skip


class Example(NamedTuple):
    """A command as bash splits it, and where it stands."""

    document: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        return " ".join(self.words)


def in_shell(text: str) -> list[tuple[str, ...]]:
    """The commands of a script, in the order and with the words that bash gives them; nothing is carried out."""
    functions = "note() { printf '%s\\0' \"$@\" ''; }; command_not_found_handle() { note \"$@\"; }\n"
    functions += "".join(f'{name}() {{ note {name} "$@"; }}; ' for name in ("source", "cd", "eval", "export"))
    done = subprocess.run(
        ["bash", "-c", f"PATH=/nowhere\n{functions}\n{text}"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return [tuple(command.split("\0")) for command in done.stdout.removesuffix("\0\0").split("\0\0") if command]


def blocks(document: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks."""
    return FENCE.findall(document.read_text())


def examples() -> Iterator[Example]:
    """Every command of every document."""
    for document in DOCUMENTS:
        shell = [text for language, text in blocks(document) if language == "bash"]
        inline = INLINE.findall(FENCE.sub("", document.read_text()))
        for text in [*shell, *(" ".join(command.split()) for command in inline)]:
            yield from (Example(document.name, words) for words in in_shell(text))


EXAMPLES = list({example.words: example for example in examples()}.values())  # each once
RUN = [example for example in EXAMPLES if example.command not in NOT_RUN]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A folder with texts to train on, recorded trajectories, and runs for the commands that read results."""
    lab = Lab(tmp_path_factory.mktemp("place"), "results/raw")
    for suite, name in (("trajectories", "gpt2"), ("trajectories", "fcn"), ("trajectories_held_out", "mlp")):
        recorded(lab.results / suite / name, NETWORKS[name]())
    for number, path in enumerate(sorted(lab.texts.glob("*.txt"))):
        path.with_suffix(".py").write_text(f"# {number}\n{path.read_text()}")
    return lab


@pytest.fixture(scope="module")
def few(place: Lab) -> None:
    """A run of every suite that commands on results are given."""
    for suite, predictor in (("default", "linear"), ("ttb_embedded", "none"), ("referee_micro", "none")):
        words = place.overrides(f"results_dir={place.root / 'few'}", f"suite={suite}", f"predictor={predictor}")
        with pytest.MonkeyPatch.context() as patch:
            assert call(patch, place.root, *words).status == 0


@pytest.fixture
def small(place: Lab, monkeypatch: pytest.MonkeyPatch):
    """Carry out a command with small settings; how it ended."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folders = (f"results_dir={place.results}", f"cache_dir={place.cache}", "device=cpu", "progress=false")
    few = ("--results", str(place.root / "few"), "--out", str(place.results.parent))

    def carry_out(words: tuple[str, ...], key: str) -> End:
        program, *arguments = words
        if program == "make":
            return [carry_out(line, key) for line in recipe(*arguments)][-1]
        assert program == "python", f"{key} is not run by any test: run it here, or name it in NOT_RUN with the reason"
        path, *arguments = arguments
        if path == "train.py":
            settings = APPENDED.get(key, (*TEXT, *STEPS))
            data = () if settings is DIGITS else (f"dataset.path={place.texts}",)
            dry = ("hydra.sweeper.dry_run=true",) if "hydra/launcher=slurm" in arguments else ()  # nothing is queued
            return call(monkeypatch, place.root, *arguments, *settings, *data, *folders, *dry)
        if path == "meta_train.py":
            return meta_train(monkeypatch, place.root, *arguments, *META)
        monkeypatch.chdir(place.root)
        own = {"scripts/aggregate.py": few, "scripts/report.py": few}
        own |= {"scripts/status.py": few[:2], "scripts/records.py": few[:2]}
        settings = own[path] if path in own else APPENDED.get(key, ())
        return script(monkeypatch, Path(path).stem, *arguments, *settings)

    return carry_out


def recipe(*targets: str) -> list[tuple[str, ...]]:
    """The Python commands by which make makes `targets`."""
    command = ["make", "-n", "-o", ".venv/.installed", *targets]
    text = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [words for words in in_shell(text.replace(".venv/bin/", "")) if words[0] == "python"]


# ---- the documents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_says_what_it_is(document):
    for language, text in blocks(document):
        assert language in ("bash", "python", "yaml", "text"), f"mark this block, or run it here:\n{text}"
        if language == "text":
            commands = [line for line in text.splitlines() if re.match(r"(\$|python|make|pytest|pip) ", line)]
            assert not commands, f"{document.name}: {commands} are commands in a block that is not run"


def test_what_is_not_run_is_printed_somewhere():
    assert set(NOT_RUN) <= {example.command for example in EXAMPLES}
    assert set(APPENDED) <= {example.command for example in EXAMPLES}
    assert len(RUN) > 20


def test_the_reader_of_blocks(tmp_path):
    file = tmp_path / "x.md"
    file.write_text("`python a.py`\n```bash\nmake x && python b.py 'c d' \\\n  e=[f,g]  # no\nfoo\n```\n```\nh\n```\n")
    assert blocks(file) == [("bash", "make x && python b.py 'c d' \\\n  e=[f,g]  # no\nfoo\n"), ("", "h\n")]
    assert in_shell(blocks(file)[0][1]) == [("make", "x"), ("python", "b.py", "c d", "e=[f,g]"), ("foo",)]


# ---- commands --------------------------------------------------------------------------------------------------------


TRAININGS = [example for example in RUN if example.words[:2] == ("python", "train.py")]
OTHERS = [example for example in RUN if example not in TRAININGS and "submit.py" not in example.command]
SUBMISSIONS = [example for example in RUN if "submit.py" in example.command]


@pytest.mark.parametrize("example", TRAININGS, ids=lambda example: example.command[16:70])
def test_a_training_command(example, small, place, monkeypatch):
    # drawn for W&B; tests/training/test_logger.py draws them
    monkeypatch.setattr("leapbench.figures.figures_of_run", lambda folder, out: {})
    before = set(place.results.glob("*/*/summary.json"))
    end = small(example.words, example.command)
    assert end.status == 0 and all(line.startswith(REMARKS) for line in end.err.splitlines()), end.err
    looks = {"--help", "--list", "hydra/launcher=slurm"} & set(example.words)
    assert looks or set(place.results.glob("*/*/summary.json")) > before, end.out
    assert looks or "failed: " not in end.out


@pytest.mark.parametrize("example", OTHERS, ids=lambda example: f"{example.document}: {example.command[:70]}")
def test_a_command_on_results(example, small, few, monkeypatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    if "--watch" in example.words:
        monkeypatch.setattr(time, "sleep", interrupt)
    end = small(example.words, example.command)
    assert (end.status, end.err) == (0, ""), end.err
    if example.words[:2] == ("make", "sweep"):
        assert end.out and all(line.startswith("python train.py -m suite=") for line in end.out.splitlines())


@pytest.mark.parametrize("example", SUBMISSIONS, ids=lambda example: f"{example.document}: {example.command[:70]}")
def test_a_submission_up_to_the_queue(example, small, place, monkeypatch):
    """One command line of the sweep, planned in this process, no data prepared, and a queue that takes everything."""
    from leapbench.cluster import submit, sweep

    def plan(line: list[str]) -> list[PlannedRun]:
        with pytest.MonkeyPatch.context() as patch:
            end = call(patch, place.root, *line[1:], "hydra.sweeper.dry_run=true")
        return [PlannedRun.parse(row) for row in end.out.splitlines() if row.startswith("{")]

    def queue(suite: Path, runs: list[PlannedRun], retry: bool, site: Site) -> tuple[list, dict[str, int]]:
        submitted[suite.name] = [run.overrides for run in runs]
        keys.update(site.keys)
        return [], {"missing": len(runs)}

    lines, submitted, keys = sweep.commands, {}, {}
    monkeypatch.setattr(sweep, "commands", lambda *words: lines(*words)[1:2])
    monkeypatch.setattr(sweep, "plan", plan)
    monkeypatch.setattr(submit, "survey", lambda suite: None)
    monkeypatch.setattr(submit, "to_do", lambda runs, *_: (runs, {}))
    monkeypatch.setattr(submit, "prepare", lambda runs: None)
    monkeypatch.setattr(submit, "submit", queue)
    monkeypatch.setattr("leapbench.records.commit.code", lambda allow_dirty: PROJECT)
    end = small(example.words, example.command)
    assert end.status == 0, end.err
    assert list(submitted) == ["ttb_embedded"] and len(submitted["ttb_embedded"]) == 20
    assert keys["timeout_min"] == 240


def test_the_demo(small, place):
    """The trainings of `make demo`, with small settings and in one process; its tables and figures are those above."""
    for words in recipe("demo"):
        assert words[1] in ("train.py", "scripts/aggregate.py", "scripts/report.py")
        if words[1] == "train.py":
            end = small(words, "make demo")
            assert end.status == 0, end.err
    runs = [path.parents[1].name for path in place.results.glob("demo*/*/summary.json")]
    assert (runs.count("demo"), runs.count("demo_leap")) == (1, 5)


def test_the_line_for_the_tab_key_is_the_one_that_help_gives():
    assert (
        f"`{help.COMPLETION}`" in (PROJECT / "docs/using.md").read_text()
    )  # tests/config/test_help.py has bash source it


# ---- code ------------------------------------------------------------------------------------------------------------

PYTHON = [text for document in DOCUMENTS for language, text in blocks(document) if language == "python"]
FILES = {
    match[1]: text
    for document in DOCUMENTS for language, text in blocks(document)
    if language in ("python", "yaml") and (match := PASTED.search(text))
}  # fmt: skip


@pytest.mark.parametrize("code", [text for text in PYTHON if text not in FILES.values()])
def test_a_block_of_python_runs(code, capsys):
    import torch

    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {"__name__": "pasted"})
    steps, skipped, loss = re.search(
        r"(\d+) steps taken, (?:(\d+) skipped, )?held-out loss (\S+)", capsys.readouterr().out
    ).groups()
    assert int(steps) == 400 and int(skipped or 10) >= 10 and float(loss) < 10


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the documents' files pasted where their first lines say."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("src", "conf", "results/calibration", "tests", "train.py", "pyproject.toml"):
        copied = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copied(PROJECT / name, root / name, **({"ignore": IGNORED} if copied is shutil.copytree else {}))
    for name, text in FILES.items():
        assert not (root / name).exists()
        (root / name).write_text(text)
    return root


IGNORED = shutil.ignore_patterns("__pycache__", "golden", "*.egg-info")


def checked(copy: Path, *words: str) -> None:
    """Run a module's command in the copy; it must find nothing wrong."""
    env = os.environ | {"PYTHONPATH": str(copy / "src"), "MYPYPATH": str(copy / "src")}
    done = subprocess.run([sys.executable, "-m", *words], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_yaml_is_pasted_as_a_file():
    for document in DOCUMENTS:
        assert all(PASTED.search(text) for language, text in blocks(document) if language == "yaml")


def test_a_predictor_is_added_as_printed(copy):
    assert set(FILES) == {"src/leapbench/predictors/halfway.py", "conf/predictor/halfway.yaml"}
    (file,) = [name for name in FILES if name.endswith(".py")]
    checked(copy, "ruff", "check", "--no-cache", file)
    checked(copy, "ruff", "format", "--check", "--no-cache", file)
    # torch is taken for granted: to read all of it takes mypy half a minute
    (copy / "mypy.ini").write_text("[mypy]\ndisallow_untyped_defs = true\nexplicit_package_bases = true\n"
                                   "[mypy-torch.*]\nfollow_imports = skip\n")  # fmt: skip
    checked(copy, "mypy", "--config-file", "mypy.ini", "--follow-imports", "silent", file)


def test_an_added_predictor_keeps_the_contracts_and_runs(copy, place):
    (words,) = [e.words[2:] for e in EXAMPLES if "halfway" in e.command and e.words[0] == "python"]
    folders = (f"results_dir={copy / 'raw'}", f"cache_dir={place.cache}", f"dataset.path={place.texts}")
    (copy / "tests" / "test_pasted.py").write_text(
        "from helpers import call\n\ndef test_halfway_runs(monkeypatch, tmp_path):\n"
        f"    end = call(monkeypatch, tmp_path, *{(*words, *TEXT, *STEPS, *folders)!r})\n"
        "    assert (end.status, end.err) == (0, '') and 'halfway ' in end.out\n"
    )
    names = ("tests/test_contracts.py", "tests/test_pasted.py")
    checked(copy, "pytest", *names, "-k", "halfway or yaml_are_found", "-p", "no:cacheprovider")
    assert len(list((copy / "raw").glob(f"*/*/{SUMMARY}"))) == 1


def test_the_package_line_must_come_first(copy, place):
    """What Hydra makes of the file if it does not is explained."""
    path = copy / "conf" / "predictor" / "other_way.yaml"
    first, second, *others = FILES["conf/predictor/halfway.yaml"].splitlines()
    path.write_text("\n".join([second, first, *others]))
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(FILES["conf/predictor/halfway.yaml"])
    words = ("predictor=other_way", *TEXT, *STEPS, f"dataset.path={place.texts}")
    end = finished(start(copy, *words, script=copy / "train.py", PYTHONPATH=str(copy / "src")))
    path.unlink()
    assert end.status == 2 and len(end.err.splitlines()) == 1
    assert "# @package predictors." in end.err and "first line" in end.err
