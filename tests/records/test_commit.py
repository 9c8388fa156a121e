"""Which code runs: the commit, uncommitted changes, and copies of a commit."""

import subprocess

import pytest

from leapbench.config.errors import ConfigError
from leapbench.records import commit


@pytest.fixture
def project(tmp_path):
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "results" / "tuning").mkdir(parents=True)
    (project / "train.py").write_text("today")
    (project / "src" / "a.py").write_text("a")
    (project / "results" / "tuning" / "lr.yaml").write_text("lr: 1")
    (project / ".gitignore").write_text("results/code/\n")
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "today")
    return project


def git(project, *command):
    return subprocess.run(["git", "-C", project, *command], check=True, capture_output=True, text=True).stdout.strip()


def test_only_code_makes_a_tree_dirty(project):
    (project / "docs.md").write_text("new")
    (project / "results" / "tuning" / "lr.yaml").write_text("lr: 2")
    assert commit.changes(project) == []
    commit.require_clean(project)
    (project / "src" / "a.py").write_text("changed")
    (project / "src" / "new file.py").write_text("new")
    assert len(commit.changes(project)) == 2
    with pytest.raises(ConfigError, match=r"differs from its commit \(src/a.py and 1 more\).*--allow-dirty"):
        commit.require_clean(project)
    assert commit.code(True, project) == project


def test_jobs_run_a_copy_of_the_commit(project):
    name = git(project, "rev-parse", "HEAD")
    code = commit.code(False, project)
    assert code == project / "results" / "code" / name
    (project / "train.py").write_text("tomorrow")
    assert (code / "train.py").read_text() == "today"
    assert (code / "results" / "tuning" / "lr.yaml").exists() and not (code / ".git").exists()
    assert (commit.current(code), commit.changes(code)) == (name, [])
    git(project, "-c", "user.name=n", "-c", "user.email=e", "commit", "-qam", "tomorrow")
    assert commit.current(code) == name != commit.current(project)
    assert commit.snapshot(code.parent, project) != code
    assert commit.code(True, project).name == commit.current(project)  # nothing differs: pinned all the same
    assert commit.code(False, code) == code
    assert sorted(path.name for path in code.parent.iterdir()) == sorted([name, commit.current(project)])


def test_a_copy_needs_its_inputs_committed(project):
    (project / "results" / "tuning" / "new.yaml").write_text("lr: 3")
    with pytest.raises(ConfigError, match=r"results/tuning/new\.yaml"):
        commit.code(False, project)
    assert not (project / "results" / "code").exists()


def test_outside_git_there_is_nothing_to_pin(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (commit.current(tmp_path), commit.changes(tmp_path)) == (None, [])
    with pytest.raises(ConfigError, match="no git checkout"):
        commit.code(False, tmp_path)
    assert commit.code(True, tmp_path) == tmp_path
