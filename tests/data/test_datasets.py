"""Data sets: splits, layouts, tokenizers, the cache, and every mistake a user can make."""

import hashlib
import json
import multiprocessing
import os
import re
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import transformers

import leapbench.data as datasets
import published as twin
from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig
from leapbench.data import hub, stdlib, text_files
from leapbench.data.prompts import prompts
from leapbench.data.tokenize import BYTE
from leapbench.names import SPLITS

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "naïve",
    "café",
    "owners",
    "watch",
    "日本",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(hub.huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def sentence(number: int) -> str:
    return f"{number} " + " ".join(WORDS[(number * 7 + k * k) % len(WORDS)] for k in range(4 + number % 9))


def texts(folder: Path, count: int = 60) -> DatasetConfig:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:03}.txt").write_text(sentence(number), encoding="utf-8")
    return DatasetConfig(name="mine", source="text_files", path=str(folder), vocab_size=256, tokens=8)


def parquet(path: Path, documents: list, column: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: documents}), path)


def published_tokenizer(folder: Path) -> str:
    """A small BPE saved as a published one is, with gpt2's end-of-text token and a truncation that must not count."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        map(sentence, range(50)), vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    bpe.enable_truncation(3)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    return str(folder)


def wikitext(root: Path) -> DatasetConfig:
    subset = root / "wikitext-103-raw-v1"
    parquet(subset / "train-00000-of-00002.parquet", [sentence(k) + "\n" for k in range(50)] + ["", None])
    parquet(subset / "train-00001-of-00002.parquet", [sentence(k) + "\n" for k in range(50, 100)])
    parquet(subset / "validation-00000-of-00001.parquet", [sentence(k) + "\n" for k in range(200, 220)])
    parquet(subset / "test-00000-of-00001.parquet", [sentence(k) + "\n" for k in range(300, 320)])
    files = [{"split": split, "path": f"wikitext-103-raw-v1/{split}-*"} for split in ("train", "validation", "test")]
    (root / "README.md").write_text(
        f"---\nconfigs: {json.dumps([{'config_name': 'wikitext-103-raw-v1', 'data_files': files}])}\n---\n"
    )
    return DatasetConfig(name="wikitext103", source="hub", path=str(root), subset="wikitext-103-raw-v1", tokens=8)


def decode(split: datasets.Tokens) -> list[str]:
    """The padded documents of a byte-level split."""
    assert split.lengths is not None
    return [bytes(row[:length].astype(np.uint8)).decode() for row, length in zip(split.ids, split.lengths, strict=True)]


def test_splits_are_disjoint_and_cover_the_folder(tmp_path):
    cfg = replace(texts(tmp_path / "texts"), layout="padded", tokens=200)
    data = datasets.load(cfg, tmp_path / "cache")
    parts = [decode(getattr(data, split)) for split in SPLITS]
    assert [len(part) for part in parts] == [54, 3, 3]
    assert sorted(chain(*parts)) == sorted(map(sentence, range(60)))


def test_packed_splits_are_their_documents_joined_and_cut(tmp_path):
    cfg = texts(tmp_path / "texts")
    data = datasets.load(cfg, tmp_path / "cache")
    corpus = text_files.open_corpus(cfg)
    for split in SPLITS:
        joined = "\n".join(corpus.read(split)).encode()
        tokens = getattr(data, split)
        assert tokens.ids.shape == (len(joined) // 8, 8)
        assert tokens.lengths is None
        assert tokens.ids.astype(np.uint8).tobytes() == joined[: len(joined) // 8 * 8]
    assert (data.vocab_size, data.pad_id) == (256, 0)


def test_batches_are_int64_and_padded_ones_are_masked(tmp_path):
    cfg = texts(tmp_path / "texts")
    packed = datasets.load(cfg, tmp_path / "cache").train.batch([3, 0])
    assert set(packed) == {"input_ids"}
    assert packed["input_ids"].shape == (2, 8)
    assert packed["input_ids"].dtype == torch.int64

    train = datasets.load(replace(cfg, layout="padded", tokens=40), tmp_path / "cache").train
    lengths = [min(len(text.encode()), 40) for text in text_files.open_corpus(cfg).read("train")]
    assert min(lengths) < 40 == max(lengths)
    batch = train.batch(torch.arange(len(train)))
    assert batch["attention_mask"].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == lengths == train.lengths.tolist()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert (batch["input_ids"][batch["attention_mask"] == 1] > 0).all()
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()


def test_stdlib_is_the_running_python_without_installed_packages(tmp_path):
    real = stdlib.open_corpus(DatasetConfig(source="stdlib"))
    library = Path(os.__file__).parent
    documents = {split: set(real.read(split)) for split in SPLITS}
    assert sum((library / "ast.py").read_text(encoding="utf-8") in part for part in documents.values()) == 1
    assert Path(pytest.__file__).read_text(encoding="utf-8") not in set().union(*documents.values())

    for number in range(30):
        (tmp_path / f"module_{number}.py").write_text(sentence(number), encoding="utf-8")
    cfg = DatasetConfig(name="stdlib", source="stdlib", path=str(tmp_path), tokens=4)
    before = stdlib.open_corpus(cfg)
    (tmp_path / "latin.py").write_bytes("é".encode("latin-1"))
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "numpy.py").write_text("installed")
    after = stdlib.open_corpus(cfg)
    assert after.sha256 == before.sha256
    found = sorted(text for split in SPLITS for text in after.read(split))
    assert found == sorted(map(sentence, range(30)))


def test_cache_is_used_again_without_tokenising(tmp_path, monkeypatch):
    cfg = replace(texts(tmp_path / "texts"), tokenizer="bpe", vocab_size=280)
    first = datasets.load(cfg, tmp_path / "cache")
    assert isinstance(first.train.ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        first.train.ids[0, 0] = 1
    monkeypatch.setattr(datasets, "_write", None)
    again = datasets.load(cfg, tmp_path / "cache")
    assert np.array_equal(first.train.ids, again.train.ids)
    assert (again.vocab_size, again.pad_id, again.sha256) == (first.vocab_size, first.pad_id, first.sha256)
    with pytest.raises(TypeError):
        datasets.load(replace(cfg, tokens=9), tmp_path / "cache")


def load_and_report(cfg: DatasetConfig, cache: Path, barrier, queue) -> None:
    barrier.wait()
    data = datasets.load(cfg, cache)
    queue.put((data.sha256, data.train.ids.tobytes()))


def test_of_many_processes_that_need_the_same_cache_one_makes_it(tmp_path, monkeypatch):
    cfg, made = texts(tmp_path / "texts"), tmp_path / "made"
    made.mkdir()
    build = datasets._build

    def counted(*args) -> None:
        (made / str(os.getpid())).touch()
        time.sleep(0.3)
        build(*args)

    monkeypatch.setattr(datasets, "_build", counted)
    monkeypatch.setattr(datasets, "WAIT_S", 0.02)
    fork = multiprocessing.get_context("fork")
    barrier, queue = fork.Barrier(6), fork.Queue()
    workers = [fork.Process(target=load_and_report, args=(cfg, tmp_path / "cache", barrier, queue)) for _ in range(6)]
    for worker in workers:
        worker.start()
    reports = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert all(report == reports[0] for report in reports)
    assert len(list(made.iterdir())) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_half_made_by_a_dead_process_is_made_again(tmp_path, monkeypatch):
    cfg = texts(tmp_path / "texts")
    fork = multiprocessing.get_context("fork")
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_write", lambda *_: os._exit(9))
        worker = fork.Process(target=datasets.load, args=(cfg, tmp_path / "cache"))
        worker.start()
        worker.join(60)
    assert worker.exitcode == 9
    assert any(path.name.endswith(".lock") for path in (tmp_path / "cache").iterdir())
    assert len(datasets.load(cfg, tmp_path / "cache").train) > 0
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_hash_follows_the_content_not_the_place(tmp_path):
    one, two = texts(tmp_path / "one"), texts(tmp_path / "two")
    cache = tmp_path / "cache"
    first = datasets.load(one, cache)
    assert datasets.load(two, cache).sha256 == first.sha256
    assert len(list(cache.iterdir())) == 1
    (tmp_path / "two" / "007.txt").write_text("another text of about the same length")
    changed = datasets.load(two, cache)
    assert changed.sha256 != first.sha256
    assert not np.array_equal(changed.train.ids, first.train.ids)


def test_failed_load_leaves_no_cache(tmp_path):
    with pytest.raises(ConfigError, match=r"split has no sequence of 5000 tokens"):
        datasets.load(replace(texts(tmp_path / "texts"), tokens=5000), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_bpe_is_trained_on_train_alone_and_is_deterministic(tmp_path):
    cfg = replace(texts(tmp_path / "texts"), tokenizer="bpe", vocab_size=320, layout="padded", tokens=60)
    one, two = (datasets.load(cfg, tmp_path / name) for name in ("a", "b"))
    assert one.vocab_size == 320
    for split in SPLITS:
        assert np.array_equal(getattr(one, split).ids, getattr(two, split).ids)
        assert getattr(one, split).ids.max() < 320
    held_out = [*text_files.open_corpus(cfg).read("verification"), *text_files.open_corpus(cfg).read("validation")]
    for file in Path(cfg.path).iterdir():
        if file.read_text(encoding="utf-8") in held_out:
            file.write_text("zzzz " * 50)
    other = datasets.load(cfg, tmp_path / "c")
    assert np.array_equal(other.train.ids, one.train.ids)
    assert not np.array_equal(other.verification.ids, one.verification.ids)


def test_bpe_without_merges_is_one_token_a_byte(tmp_path):
    cfg = replace(texts(tmp_path / "texts"), tokenizer="bpe", vocab_size=257, layout="padded", tokens=200)
    data = datasets.load(cfg, tmp_path / "cache")
    assert data.train.lengths.tolist() == [len(text.encode()) for text in text_files.open_corpus(cfg).read("train")]


def test_four_kinds_of_text_files_together(tmp_path):
    documents = [sentence(k) for k in range(80)]
    folder = tmp_path / "texts"
    (folder / "deeper").mkdir(parents=True)
    for k in range(20):
        (folder / "deeper" / f"{k}.txt").write_text(documents[k], encoding="utf-8")
    lines = [json.dumps({"text": text, "id": k}, ensure_ascii=False) for k, text in enumerate(documents[20:40])]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    parquet(folder / "b.parquet", documents[40:60])
    table = pa.table({"text": documents[60:]})
    with pa.OSFile(str(folder / "c.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "notes.pdf").write_bytes(b"\xff\xfe")
    (folder / ".hidden.txt").write_bytes(b"\xff\xfe")
    (folder / "empty.jsonl").touch()
    cfg = DatasetConfig(name="mine", source="text_files", path=str(folder), layout="padded", tokens=200)
    data = datasets.load(cfg, tmp_path / "cache")
    parts = [decode(getattr(data, split)) for split in SPLITS]
    assert [len(part) for part in parts] == [72, 4, 4]
    assert sorted(chain(*parts)) == sorted(documents)
    longer = datasets.load(replace(cfg, min_characters=40), tmp_path / "cache")
    kept = chain(*(decode(getattr(longer, split)) for split in SPLITS))
    assert sorted(kept) == sorted(text for text in documents if len(text) > 40)


def test_wikitext_layout_with_a_published_tokenizer(tmp_path):
    cfg = replace(wikitext(tmp_path / "wikitext"), tokenizer=published_tokenizer(tmp_path / "tokenizer"))
    data = datasets.load(cfg, tmp_path / "cache")
    published = transformers.AutoTokenizer.from_pretrained(cfg.tokenizer)
    assert data.vocab_size == len(published) == 300
    assert data.pad_id == published.eos_token_id
    for split, numbers in (("train", range(95)), ("verification", range(95, 100)), ("validation", range(200, 220))):
        text = "<|endoftext|>".join(sentence(k) + "\n" for k in numbers)
        ids = published(text, truncation=False)["input_ids"]
        assert getattr(data, split).ids.reshape(-1).tolist() == ids[: len(ids) // 8 * 8], split


def test_hold_out_counts_the_samples_that_are_long_enough(tmp_path):
    cfg = wikitext(tmp_path / "wikitext")
    cfg = replace(cfg, layout="padded", tokens=200, min_characters=45, hold_out_last=7)
    long = [sentence(k) + "\n" for k in range(100) if len(sentence(k) + "\n") > 45]
    assert 7 < len(long) < 100
    data = datasets.load(cfg, tmp_path / "cache")
    assert decode(data.train) == long[:-7]
    assert decode(data.verification) == long[-7:]
    with pytest.raises(ConfigError, match=f"hold_out_last=1000 does not fit: train has {len(long)} samples"):
        datasets.load(replace(cfg, hold_out_last=1000), tmp_path / "cache")


def test_lm1b_layout_without_a_readme(tmp_path):
    root = tmp_path / "lm1b"
    parquet(root / "plain_text/train/0000.parquet", [sentence(k) for k in range(40)])
    parquet(root / "plain_text/train/0001.parquet", [sentence(k) for k in range(40, 60)])
    parquet(root / "plain_text/test/0000.parquet", [sentence(k) for k in range(60, 70)])
    cfg = DatasetConfig(
        name="lm1b", source="hub", path=str(root), subset="plain_text", revision="refs/convert/parquet",
        layout="padded", tokens=200,
    )  # fmt: skip
    data = datasets.load(cfg, tmp_path / "cache")
    assert decode(data.train) + decode(data.verification) == [sentence(k) for k in range(60)]
    assert len(data.verification) == 3
    assert decode(data.validation) == [sentence(k) for k in range(60, 70)]
    before = data.sha256
    parquet(root / "plain_text/train/0001.parquet", [sentence(k) for k in range(40, 61)])
    assert datasets.load(cfg, tmp_path / "cache").sha256 != before


def broken_text(folder: Path) -> None:
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))


def broken_jsonl(folder: Path) -> None:
    (folder / "latin.jsonl").write_bytes('{"text": "café au lait"}\n'.encode("latin-1"))


def invalid_jsonl(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{oops}\n')


def invalid_parquet(folder: Path) -> None:
    (folder / "bad.parquet").write_bytes(b"nonsense")


def other_column(folder: Path) -> None:
    parquet(folder / "other.parquet", ["a", "b"], column="content")


def numbers(folder: Path) -> None:
    parquet(folder / "numbers.parquet", [1, 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_text, r"latin\.txt is not UTF-8"),
        (broken_jsonl, r"latin\.jsonl is not UTF-8"),
        (invalid_jsonl, r"bad\.jsonl is not a readable \.jsonl file"),
        (invalid_parquet, r"bad\.parquet is not a readable \.parquet file"),
        (other_column, r"other\.parquet has no column text; set dataset\.text_column to one of content"),
        (numbers, r"column text of .*numbers\.parquet holds int, not text"),
    ],
)
def test_unreadable_files_are_named(tmp_path, spoil, message):
    cfg = texts(tmp_path / "texts")
    spoil(tmp_path / "texts")
    assert_refused(cfg, tmp_path / "cache", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "{tmp}/absent"}, r"dataset\.path=.*/absent is not a folder"),
        ({"path": None}, r"dataset\.path=None is not a folder"),
        ({"path": "{tmp}/empty"}, r"dataset\.path=.*/empty holds no \.txt, \.jsonl, \.parquet, \.arrow file"),
        ({"source": "stdlib", "path": "{tmp}/empty"}, r"/empty holds no \.py files"),
        ({"source": "stdlib", "path": "{tmp}/absent"}, r"dataset\.path=.*/absent is not a folder"),
        ({"tokenizer": "bpe", "vocab_size": 100}, r"dataset\.vocab_size=100 is too small .* use 257 or more"),
        ({"tokenizer": "bpe", "vocab_size": None}, r"dataset\.vocab_size=None is too small"),
        ({"tokenizer": "gpt2-of-nobody"}, r"tokenizer=gpt2-of-nobody is not on this machine .* use dataset=stdlib"),
        ({"tokenizer": "{tmp}/empty"}, r"dataset\.tokenizer=.*/empty cannot be loaded"),
        ({"hold_out_last": 3}, r"dataset\.hold_out_last=3 needs dataset\.source=hub"),
        ({"source": "hub", "path": None}, r"dataset\.path is empty"),
        (
            {"source": "hub", "path": "nobody/nothing"},
            r"is not on this machine .* dataset=stdlib, or dataset\.path=<local",
        ),
        ({"source": "hub", "path": "{tmp}/empty", "subset": "raw"}, r"/empty has no folder raw"),
        ({"source": "hub", "path": "{tmp}/empty"}, r"/empty has no train split"),
    ],
)
def test_mistakes_are_one_line(tmp_path, change, message):
    cfg = texts(tmp_path / "texts")
    (tmp_path / "empty").mkdir()
    change = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in change.items()}
    assert_refused(replace(cfg, **change), tmp_path / "cache", message)


def test_hub_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub.huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
        start = time.monotonic()
        cfg = DatasetConfig(name="lm1b", source="hub", path="nobody/nothing", subset="plain_text", tokens=8)
        assert_refused(cfg, tmp_path / "cache", "is out of reach; use dataset=stdlib, or dataset.path=<local copy>")
        assert 0.2 <= time.monotonic() - start < 3


def test_what_is_not_on_this_machine_comes_from_a_hub_that_answers(monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    def load(local_files_only: bool) -> str:
        if local_files_only:
            raise OSError("not here")
        return "downloaded"

    def fail(local_files_only: bool) -> str:
        raise OSError("not here") if local_files_only else RuntimeError("no such repository\nsecond line")

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub.huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub.fetch("dataset.path", "nobody/nothing", load, "a copy") == "downloaded"
        with pytest.raises(ConfigError, match=r"^dataset\.path=nobody/nothing .*: no such repository; use a copy$"):
            hub.fetch("dataset.path", "nobody/nothing", fail, "a copy")
        server.shutdown()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_ids_fit_their_dtype(vocab_size, dtype):
    assert replace(BYTE, vocab_size=vocab_size).dtype is dtype


def test_incomplete_hub_copies_are_refused(tmp_path):
    cfg = wikitext(tmp_path / "wikitext")
    subset = tmp_path / "wikitext" / "wikitext-103-raw-v1"
    (subset / "train-00001-of-00002.parquet").unlink()
    assert_refused(cfg, tmp_path / "cache", r"has 1 of the 2 train files; complete the copy")
    for split in ("validation", "test"):
        (subset / f"{split}-00000-of-00001.parquet").unlink()
    (subset / "train-00000-of-00002.parquet").rename(subset / "train-00000-of-00001.parquet")
    assert_refused(cfg, tmp_path / "cache", r"has no validation or test split")


def test_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert_refused(texts(tmp_path / "texts"), tmp_path / "file", r"cache_dir=.*/file cannot be written")


def assert_refused(cfg: DatasetConfig, cache: Path, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        datasets.load(cfg, cache)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the published prompts -------------------------------------------------------------------------------------------


def test_the_prompts_are_the_published_ones(tmp_path):
    """Against a slow twin, and pinned: another numpy must draw the same."""
    assert prompts() == twin.leap_verify_prompts()
    assert hashlib.sha256("\0".join(prompts()).encode()).hexdigest()[:16] == "85b4a397a3618f3a"
    assert len(prompts()) == 100 and prompts()[0] == "The capital of Canada is"
    cfg = texts(tmp_path / "texts")
    for tokenizer, vocabulary in (("byte", 256), ("bpe", 300)):
        data = datasets.load(replace(cfg, tokenizer=tokenizer, vocab_size=vocabulary), tmp_path / "cache")
        assert len(data.prompts) == 100 and max(max(ids) for ids in data.prompts) < data.vocab_size
        batch = data.prompt_batch(20)
        assert batch["input_ids"].shape == batch["attention_mask"].shape and batch["input_ids"].shape[1] == 20
        for ids, row, mask in zip(data.prompts, batch["input_ids"], batch["attention_mask"], strict=True):
            assert row[: len(ids)].tolist() == ids[:20] and int(mask.sum()) == min(20, len(ids))
            assert (row[len(ids) :] == data.pad_id).all()
    by_bytes = datasets.load(cfg, tmp_path / "cache").prompts[3]
    assert bytes(by_bytes).decode() == prompts()[3] and data.prompts[3] != by_bytes


def test_white_space_at_the_ends_of_a_line_does_not_count(tmp_path):
    """Leap+Verify keeps lines of more than 50 characters without it; its lines begin and end with a blank."""
    lines = [" " + "x" * 50 + " \n", " " + "y" * 51 + " \n", "z" * 51] * 40
    folder = tmp_path / "wikitext" / "sub"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": lines}), folder / f"{split}-00000-of-00001.parquet")
    cfg = DatasetConfig(
        name="w", source="hub", path=str(tmp_path / "wikitext"), subset="sub", layout="padded", tokens=60,
        min_characters=50, hold_out_last=4,
    )  # fmt: skip
    data = datasets.load(cfg, tmp_path / "cache")
    assert {text.strip()[0] for split in SPLITS for text in decode(getattr(data, split))} == {"y", "z"}
