"""The runs of a suite in one file, and back."""

import io
import lzma
import sys
import tarfile
from pathlib import Path

import pytest

from helpers import reseal, script
from leapbench.names import EVALS, META, SUMMARY
from leapbench.records.archive import pack, unpack
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError

GOLDEN = Path(__file__).parents[1] / "tables" / "golden"
sys.path.insert(0, str(GOLDEN))

from synthetic import write_run  # noqa: E402


@pytest.fixture
def suite(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "raw" / "s", seed, K=(50,), steps=200)
    return tmp_path / "raw" / "s"


def files_of(suite: Path) -> dict[str, bytes]:
    return {str(path.relative_to(suite)): path.read_bytes() for path in suite.rglob("*") if path.is_file()}


def test_runs_come_back_as_they_were(suite, tmp_path):
    archive, before = tmp_path / "records" / "s.tar.xz", files_of(suite)
    assert len(pack(suite, archive).written) == 3
    again = tmp_path / "again" / "s"
    assert len(unpack(archive, again).written) == 3
    assert files_of(again) == before
    assert (load_suite(again).runs["status"] == "completed").all()
    assert pack(again, tmp_path / "second.tar.xz").left == {}
    assert (tmp_path / "second.tar.xz").read_bytes() == archive.read_bytes()
    assert archive.stat().st_size < sum(map(len, before.values())) / 5


def test_what_has_not_ended_or_was_changed_is_left_out_and_named(suite, tmp_path):
    partial, failed, changed = sorted(suite.iterdir())
    (partial / SUMMARY).unlink()
    text = (failed / SUMMARY).read_text()
    (failed / SUMMARY).write_text(text.replace('"completed"', '"failed"'))
    failed = reseal(failed)
    (changed / EVALS).write_bytes((changed / EVALS).read_bytes() + b"{}\n")
    with pytest.raises(RecordError, match="no run that has ended"):
        pack(suite, tmp_path / "s.tar.xz")
    write_run(suite, 7, K=(50,), steps=200)
    outcome = pack(suite, tmp_path / "s.tar.xz")
    assert len(outcome.written) == 1
    assert outcome.left[partial.name] == "has not ended"
    assert outcome.left[failed.name] == "failed"
    assert f"{EVALS}: has " in outcome.left[changed.name]


def test_a_run_that_is_there_is_left_as_it_is(suite, tmp_path):
    pack(suite, tmp_path / "s.tar.xz")
    first = sorted(suite.iterdir())[0]
    (first / META).write_text("{}")
    outcome = unpack(tmp_path / "s.tar.xz", suite)
    assert outcome.written == [] and len(outcome.left) == 3
    assert (first / META).read_text() == "{}"


def test_an_archive_never_loses_a_run(suite, tmp_path):
    pack(suite, tmp_path / "s.tar.xz")
    gone = sorted(suite.iterdir())[1]
    gone.rename(tmp_path / "gone")
    before = (tmp_path / "s.tar.xz").read_bytes()
    with pytest.raises(RecordError, match=rf"has 1 runs that .* lacks \({gone.name}\); unpack it first"):
        pack(suite, tmp_path / "s.tar.xz")
    assert (tmp_path / "s.tar.xz").read_bytes() == before
    unpack(tmp_path / "s.tar.xz", suite)
    assert len(pack(suite, tmp_path / "s.tar.xz").written) == 3


def test_a_cut_archive_is_one_line(suite, tmp_path):
    archive = tmp_path / "s.tar.xz"
    pack(suite, archive)
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(RecordError, match=r"s\.tar\.xz: damaged") as caught:
        unpack(archive, tmp_path / "again")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("place", ["../escape", "0123456789ab/../../escape", "/tmp/escape", "0123456789ab/lock"])
def test_nothing_is_written_elsewhere(place, tmp_path):
    with lzma.open(tmp_path / "s.tar.xz", "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo(place)
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(RecordError, match="which no run has written"):
        unpack(tmp_path / "s.tar.xz", tmp_path / "deep" / "er" / "s")
    assert [path.name for path in tmp_path.rglob("*")] == ["s.tar.xz"]


def test_a_link_is_refused(tmp_path):
    with lzma.open(tmp_path / "s.tar.xz", "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo(f"0123456789ab/{META}")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(member)
    with pytest.raises(RecordError, match="which is no file"):
        unpack(tmp_path / "s.tar.xz", tmp_path / "s")


def test_the_command(suite, tmp_path, monkeypatch):
    words = ("--results", str(tmp_path / "raw"), "--records", str(tmp_path / "records"))
    packed = script(monkeypatch, "records", "pack", "--suite", "s", *words)
    assert packed.status == 0 and "s: 3 runs to " in packed.out
    for run in suite.iterdir():
        run.rename(tmp_path / run.name)
    unpacked = script(monkeypatch, "records", "unpack", *words)
    assert unpacked.status == 0 and "s: 3 runs to " in unpacked.out
    assert script(monkeypatch, "records", "unpack", "--records", str(tmp_path / "none")).status == 0
    nothing = script(monkeypatch, "records", "unpack", "--suite", "other", *words)
    assert str(nothing.status).endswith("other.tar.xz: not there")
