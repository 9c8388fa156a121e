"""Costs in steps of plain AdamW: what is measured, what statistic, what memory, and the table that keeps them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import refused, script
from leapbench.bench import costs, relative, report
from leapbench.config.compose import configured
from leapbench.config.errors import ConfigError
from leapbench.config.groups import WrapperConfig
from leapbench.names import PROJECT
from leapbench.optimizers.wrapper import Wrapper
from leapbench.records.rows import RecordError
from leapbench.tables.cost import STEP
from leapbench.training.workload import Workload

CPU = torch.device("cpu")


def names(group):
    return {path.stem for path in (PROJECT / "conf" / group).glob("*.yaml")}


@pytest.fixture(scope="module")
def config(lab):
    return lab.config(*relative.PLAIN)


@pytest.fixture(scope="module")
def measured(config):
    """(rows, lines told) of one tiny measurement in which one optimizer refuses one wrapper."""
    told, build = [], relative.build_wrapper
    wrappers = names("wrapper")

    def picky(wrapper, optimizer, weights):
        if isinstance(optimizer, torch.optim.SGD) and not optimizer.param_groups[0]["momentum"]:
            raise ConfigError("no momentum")
        made = build(wrapper, optimizer, weights)
        made.period = 1  # not all of 25 steps, in every round
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relative, "STEPS", 2)
        patch.setattr(relative, "build_wrapper", picky)
        rows = relative.measure(config, CPU, 2, told.append)
    assert sum(line.startswith("left out optimizer=sgd wrapper=") for line in told) == len(wrappers)
    return pd.DataFrame(rows), told


def test_all_that_stands_in_conf_is_measured_or_said_to_be_left_out(measured):
    frame, told = measured
    steps = frame[frame["part"] == "step"]
    assert set(zip(steps["optimizer"], steps["wrapper"], strict=True)) == {
        (optimizer, wrapper) for optimizer in names("optimizer") - {"sgd"} for wrapper in names("wrapper")
    }
    assert set(frame.loc[frame["part"] == "proposal", "predictor"]) == names("predictor") - {"none"}
    assert "left out optimizer=sgd wrapper=none: no momentum" in told
    assert len(told) == len(frame) + len(names("wrapper"))


def test_figures_are_of_the_workload_and_ordered(measured, config):
    frame, _ = measured
    assert (frame[["cost", "low", "high"]] > 0).all(axis=None) and frame["seconds"].eq("processor").all()
    assert (frame["low"] <= frame["cost"]).all() and (frame["cost"] <= frame["high"]).all()
    assert frame["tokens"].eq(16).all() and frame["batch_size"].eq(4).all() and frame["model"].eq("gpt2_nano").all()
    assert frame["parameters"].eq(sum(p.numel() for p in Workload(config, CPU).model.parameters())).all()
    proposals = frame[frame["part"] == "proposal"]
    assert (proposals[[*relative.PARTS]] > 0).all(axis=None) and proposals["sequences"].eq(4).all()


def test_memory_is_what_the_objects_keep(measured, config):
    """4 bytes for a vector: AdamW's two moments, a velocity; a ring of snapshots with moments, and a candidate."""
    frame, _ = measured
    steps = frame[frame["wrapper"].eq("none") & frame["part"].eq("step")].set_index("optimizer")["bytes_per_parameter"]
    assert steps["adamw"] == pytest.approx(8, abs=0.02)  # and a count of steps per tensor
    assert steps["sgd_momentum"] == 4
    wrappers = frame[frame["optimizer"].eq("sgd_momentum") & frame["part"].eq("step")].set_index("wrapper")
    vectors = {
        "lookahead": 1, "snoo": 2, "ema": 3, "ema_nesterov": 2, "schedule_free": 2, "tail_average": 7, "none": 0,
        "growing_average": 2, "orthogonal": 3,  # and a number per neuron
    }  # fmt: skip
    assert (wrappers["bytes_per_parameter"] / 4 - 1).to_dict() == pytest.approx(vectors, abs=0.05)
    memory = frame[frame["part"] == "proposal"].set_index("predictor")["bytes_per_parameter"]
    for name, predictor in relative.predictors(config).items():
        vectors = predictor.context * (3 if predictor.needs_moments else 1) + 1
        # A learned one keeps its network too.
        network = predictor.network.parameters() if hasattr(predictor, "network") else ()
        own = 4 * sum(p.numel() for p in network) / frame["parameters"].iloc[0]
        assert memory[name] == pytest.approx(4 * vectors + own, abs=0.02), name


def test_what_counts_as_held():
    vector = torch.zeros(100)
    box = SimpleNamespace(views=[vector[:50], vector[50:]], own={"a": (torch.zeros(10, dtype=torch.float64), 3)})
    box.itself = box
    assert relative.held([box], beyond=[]) == 400 + 80
    assert relative.held([box], beyond=[[vector]]) == 80
    assert relative.held([box], beyond=[box]) == 0
    box.function = lambda: torch.zeros(7)
    box.model = torch.nn.Linear(3, 2)
    assert relative.held([box], beyond=[[vector]]) == 80 + 32


class Averaging(Wrapper):
    """Keeps a mean that it updates in every third step."""

    period = 3

    def __init__(self, optimizer, weights):
        super().__init__(optimizer, weights)
        self.mean = weights.vector.clone()


def test_a_wrapper_counts_its_own_memory(config, monkeypatch):
    monkeypatch.setattr(relative, "build_wrapper", lambda _, optimizer, weights: Averaging(optimizer, weights))
    training = relative.Training(Workload(config, CPU), configured(*relative.PLAIN).optimizer, WrapperConfig("mine"))
    training.steps(2)
    assert training.bytes_per_parameter() == pytest.approx(8 + 4, abs=0.02)


# ---- the statistic ---------------------------------------------------------------------------------------------------


class Machine:
    """A clock of our own, on which work takes `pace` times as long as it should."""

    def __init__(self, monkeypatch):
        self.time, self.pace = 0.0, 1.0
        monkeypatch.setattr(costs, "time", SimpleNamespace(process_time=self.now, perf_counter=self.now))

    def now(self):
        return self.time


class Imagined:
    """A training whose steps take `step` seconds, every `period`-th of them `extra` more."""

    def __init__(self, machine, step, extra=0.0, period=1, paces=()):
        self.machine, self.step, self.extra, self.paces = machine, step, extra, iter(paces)
        self.wrapper, self.done = SimpleNamespace(period=period), 0

    def steps(self, count):
        self.machine.pace = next(self.paces, self.machine.pace)
        for _ in range(count):
            self.done += 1
            self.machine.time += self.machine.pace * (self.step + self.extra * (self.done % self.wrapper.period == 0))

    def bytes_per_parameter(self):
        return 0.0


def test_rounds_on_a_slower_machine_change_nothing(monkeypatch):
    machine = Machine(monkeypatch)
    plain = Imagined(machine, 1.0, paces=(1, 1, 5, 0.2, 3, 3))  # the pace of the whole round
    assert relative._of_steps(plain, Imagined(machine, 1.5), 5, CPU)["cost"] == pytest.approx(1.5)


def test_a_round_that_was_disturbed_changes_nothing(monkeypatch):
    machine = Machine(monkeypatch)
    plain, other = Imagined(machine, 1.0, paces=[1] * 13), Imagined(machine, 1.5, paces=[1, 1, 9] + [1] * 10)
    row = relative._of_steps(plain, other, 12, CPU)
    assert (row["cost"], row["low"], row["high"]) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_of_a_median_covers_it():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        row = relative._median(np.exp(rng.normal(size=25)))
        inside += row["low"] <= 1.0 <= row["high"]
    assert 0.93 <= inside / 2000 <= 0.98  # the next narrower pair of ranks covers 89 %
    assert relative._median(np.array([3.0, 1.0, 2.0])) == {"cost": 2.0, "low": 1.0, "high": 3.0}


@pytest.mark.parametrize("period", [1, 3, 7, 10, 28])
def test_work_that_is_done_now_and_then_is_spread_over_its_period(monkeypatch, period):
    machine = Machine(monkeypatch)
    row = relative._of_steps(Imagined(machine, 1.0), Imagined(machine, 1.0, period * 0.25, period), 3, CPU)
    assert row["cost"] == pytest.approx(1.25)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_of_several_workloads(measured, tmp_path):
    rows = measured[0].to_dict("records")
    other = [{**row, "model": "fcn_small", "tokens": 0, "cost": 7.0} for row in rows]
    report.write_cost(rows, CPU, tmp_path)
    report.write_cost(other, CPU, tmp_path)
    report.check_machine(CPU, tmp_path)
    table, page = report.write_cost([{**row, "cost": 9.0} for row in rows], CPU, tmp_path)
    frame = pd.read_csv(table, keep_default_na=False, na_values=[""])
    assert len(frame) == 2 * len(rows) and set(frame["cost"]) == {7.0, 9.0}
    assert not frame.duplicated([*STEP, "predictor"]).any()
    assert frame["machine"].unique().tolist() == [report.machine(CPU)]
    text = page.read_text()
    assert report.machine(CPU) in text and text.count("\n## ") == 2 and " nan " not in text
    assert "## fcn_small on text_files, 4 images a step" in text and "gpt2_nano on text_files, 4 x 16 tokens" in text
    assert "| persistence" in text and "9.000 [" in text
    assert "persistence" in report.cost_console(rows)


def test_a_table_is_of_one_machine(measured, tmp_path, monkeypatch):
    table, _ = report.write_cost(measured[0].to_dict("records"), CPU, tmp_path)
    frame = pd.read_csv(table)
    frame.assign(machine="another").to_csv(table, index=False)
    before = table.read_bytes()
    monkeypatch.setattr(relative, "measure", lambda *arguments: pytest.fail("measured in vain"))
    end = script(monkeypatch, "bench", "--cost", "experiment=ttb_text", "--device", "cpu", "--out", str(tmp_path))
    refused(end, "bench_cost.csv", "another", report.machine(CPU), "--out")
    assert table.read_bytes() == before
    table.write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match="not a table of"):
        report.check_machine(CPU, tmp_path)


def test_the_command(measured, tmp_path, monkeypatch):
    """Other words name the workload; what optimizers are tried does not depend on the experiment's."""
    asked = []

    def measure(config, device, rounds, tell):
        asked.append((config.model.name, config.train.batch_size, config.optimizer.name, rounds))
        return measured[0].to_dict("records")

    monkeypatch.setattr(relative, "measure", measure)
    words = "model=fcn_small dataset=digits train.batch_size=48 optimizer=sgd"
    end = script(monkeypatch, "bench", "--cost", words, "--device", "cpu", "--out", str(tmp_path))
    assert (end.status, end.err) == (0, "") and asked == [("fcn_small", 48, "sgd", 25)]
    assert "in steps of plain AdamW" in end.out and (tmp_path / "bench_cost.md").is_file()
    end = script(monkeypatch, "bench", "--cost", "model=fcn_smal", "--device", "cpu", "--out", str(tmp_path))
    refused(end, "model=fcn_smal ", "fcn_small")
    end = script(monkeypatch, "bench", "--cost", "trian.steps=3", "--device", "cpu", "--out", str(tmp_path))
    refused(end, "trian")
