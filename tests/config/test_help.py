"""The first page, the lists and the tab key: complete, and quick."""

import os
import subprocess
import sys

import pytest

from helpers import call
from leapbench.config import help
from leapbench.names import PROJECT

TYPED = {
    "python train.py predictor=li": "predictor=linear",
    "python train.py -m predictor=[trend,quad": "predictor=[trend,quadratic",
    "python train.py mode=": "mode=observe mode=leap",
    "python train.py predictor=linear leap.rule=fa": "leap.rule=falling",
    "python train.py -m leap.gate=any,st": "leap.gate=any,stable",
    "python train.py hydra/launcher=lo": "hydra/launcher=local",  # Hydra's own answer from here on
    "python train.py leap.ga": "leap.gate=",
    "python train.py logger=wandb wandb.m": "wandb.mode=",
}


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_help_is_one_screen_with_every_predictor(monkeypatch, tmp_path, wide):
    end = call(monkeypatch, tmp_path, "predictor=linear", "--help")
    lines = end.out.splitlines()
    assert (end.status, end.err) == (0, "")
    assert len(lines) <= 55 and max(map(len, lines)) <= 120
    for path in (PROJECT / "conf" / "predictor").glob("*.yaml"):
        (line,) = [line for line in lines if line.split()[:1] == [path.stem]]
        assert len(line.split()) > 2
    assert call(monkeypatch, tmp_path, "-h").out == end.out


def test_the_keys_have_defaults_units_and_all_their_words(wide):
    text = help.page()
    for key, written in (("train.steps", "2000 "), ("optimizer.lr", "1.0e-3"), ("hydra.launcher.n_jobs", "1 ")):
        assert f"  {key}={written}" in text
    assert "optimizer steps" in text and "sequences per step" in text and "seeds=" not in text
    for line in text.splitlines():
        key = line.strip().partition("=")[0]
        if key in help.words() and not line.endswith("..."):
            assert all(word in line for word in help.words()[key]), line


@pytest.mark.parametrize("group", help.LISTED)
def test_every_choice_has_a_line(monkeypatch, tmp_path, wide, group):
    end = call(monkeypatch, tmp_path, "--list", f"{group}s")
    assert (end.status, end.err) == (0, "")
    for name in help.choices(group):
        assert help.description(group, name), f"{group}={name} has no comment that says what it is"
        assert f"  {name} " in end.out
    assert end.out.strip() in call(monkeypatch, tmp_path, "--list").out
    assert call(monkeypatch, tmp_path, f"--list={group}").out == end.out


def test_a_list_that_does_not_exist(monkeypatch, tmp_path):
    end = call(monkeypatch, tmp_path, "--list", "predictr")
    assert (end.status, end.out) == (2, "")
    assert end.err.startswith("--list predictr is no group; did you mean predictor?; there are: model, ")


def test_the_reader_of_comments(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a: [1, 2]  # [science] two\nb:\n  c: null  # [machine] none: a | b\nd: {e: 3}  # three\nf: 1\n")
    assert help.explained(file) == {
        "a": ("[1,2]", "two"), "b.c": ("null", "none: a | b"), "d": ("{e: 3}", "three"), "f": ("1", ""),
    }  # fmt: skip


def test_values_are_completed_in_a_real_shell():
    """With the line that help gives, sourced by bash."""
    script = f"{help.COMPLETION}\n" + "".join(
        f"COMP_LINE='{line}'; COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()\n"
        'hydra_bash_completion; echo "${COMPREPLY[@]}"\n'
        for line in TYPED
    )
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=PROJECT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.splitlines() == list(TYPED.values()), done.stderr


def test_help_lists_and_completions_are_answered_without_torch():
    code = "import os, runpy, sys\n"
    for words in (["--help"], ["--list"], ["-sc", "query=bash"]):
        code += f"os.environ['COMP_LINE'] = 'python train.py mode='; sys.argv = ['train.py', *{words}]\n"
        code += f"runpy.run_path({str(PROJECT / 'train.py')!r}, run_name='__main__')\n"
    code += "print(*sorted({'torch', 'pandas', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nmode=observe mode=leap\n\n"), done.stdout[-300:]
