"""The examples in docstrings, as pasted into a fresh interpreter: with nothing but what they import."""

import doctest
import importlib

import pytest

import leapbench
from leapbench.names import PROJECT

SOURCE = PROJECT / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted((SOURCE / "leapbench").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_it_does_what_it_says(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, globs={}):
        runner.run(example)
    assert runner.tries and not runner.failures


def test_public_objects_have_one():
    for public in (leapbench.Leap,):
        assert ">>> import leapbench" in public.__doc__


@pytest.mark.parametrize("name", MODULES)
def test_it_is_short_and_begins_with_its_imports(name):
    module = importlib.import_module(name)
    for example in doctest.DocTestFinder().find(module):
        lines = [line.source for line in example.examples]
        assert not lines or (lines[0].startswith(("import ", "from ")) and len(lines) < 15), example.name
