"""The published settings end to end, on a shrunken network and a local copy of the data in the hub's layout."""

import math
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers import config_of, rows
from leapbench.training.run import run

SHRUNKEN = {
    "leap_verify_gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 300},
    "leap_verify_qwen": {
        "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 300,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WikiText-103's repository in small: its parquet files, and a tokenizer folder beside them."""
    root = tmp_path_factory.mktemp("hub")
    text = "{} is a number , and so are {} and {} ; "
    lines = [f" = Heading {i} = \n" if i % 5 == 0 else text.format(i, i + 1, i * i) * 2 for i in range(900)]
    for subset in (root / "wikitext-103-raw-v1", root / "wikitext-103-v1"):
        subset.mkdir()
        for split, part in {"train": lines[:700], "validation": lines[700:800], "test": lines[800:]}.items():
            pd.DataFrame({"text": part}).to_parquet(subset / f"{split}-00000-of-00001.parquet")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(lines, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(root / "tokenizer")
    return root


@pytest.mark.parametrize("experiment", SHRUNKEN)
def test_published_setting_runs_and_proposes(experiment: str, wikitext: Path, tmp_path: Path) -> None:
    changes = {
        "model": {"config": SHRUNKEN[experiment]}, "K": [1], "verify": {"sequences": 4},
        "dataset": {"path": str(wikitext), "tokenizer": str(wikitext / "tokenizer")},
        "train": {"steps": 4, "interval": 1}, "schedule": {"warmup": 2}, "eval": {"every": 4, "sequences": 4},
        "predictors": {"average": {"context": 2}, "trend": {"context": 2}},
        "results_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "history_device": None,
    }  # fmt: skip
    config = config_of(experiment, "protocol=[exact,paper]", **changes)
    assert (config.dataset.layout, config.dataset.tokens, config.train.precision) == ("padded", 256, "bfloat16")
    end = run(config)
    proposals = rows(end.folder, "proposals.jsonl")
    assert end.status == "completed"
    assert {row["predictor"] for row in proposals} == set(config.predictors)
    assert all(0 < row["loss_true_nats"] < 2 * math.log(300) for row in proposals)
    assert [row["regime"] for row in rows(end.folder, "regimes.jsonl")][:2] == ["unknown"] * 2


def test_the_published_code_leaps_in_its_training(wikitext: Path, tmp_path: Path) -> None:
    """protocol=code at GPT-2's setting: padding in the loss, prompts by the published tokenizer, momentum K=5 tried."""
    changes = {
        "model": {"config": SHRUNKEN["leap_verify_gpt2"], "init": "scratch"}, "K": [2], "verify": {"sequences": 4},
        "dataset": {"path": str(wikitext), "tokenizer": str(wikitext / "tokenizer")}, "predictors": {},
        "regime": {"tau_low": [-2.0], "tau_high": [-1.5], "confirm": 1},
        "train": {"steps": 18, "interval": 6}, "eval": {"every": 18, "sequences": 4},
        "results_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "history_device": None,
            "schedule": {"warmup": 2},
    }  # fmt: skip
    config = config_of("leap_verify_gpt2", "protocol=code", "predictor=momentum", **changes)
    assert config.pad_in_loss and config.inline_leaps is not None
    config.predictors.pop("average")
    end = run(config)
    assert end.status == "completed"
    tried = [row["step"] for row in rows(end.folder, "leaps.jsonl")]
    assert tried and set(tried) <= {12, 18}
    assert {row["K"] for row in rows(end.folder, "leaps.jsonl")} == {5}
