"""Ranges, folding and early validation, on jobs composed from conf/ with nothing launched."""

from itertools import product
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from helpers import composed
from leapbench.cli import SweepError
from leapbench.cluster.sweep import commands, specification
from leapbench.config.errors import ConfigError
from leapbench.config.resolve import resolve
from leapbench.names import META, PROJECT, SUMMARY
from leapbench.records.files import write_json
from leapbench.records.plan import PlannedRun
from leapbench.records.seal import SCHEMA
from leapbench.records.sources import code_of

BASE = ["regime=published"]


@pytest.fixture
def sweeper():
    """Build a sweeper on conf/; keyword arguments are its options."""

    def build(typed: tuple[str, ...] = (), **options: Any) -> Any:
        # Hydra executes its plugins anew when it starts, so a class imported earlier would be a stale one.
        from hydra_plugins.leap_sweeper import LeapSweeper

        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        built = LeapSweeper(**options)
        built.hydra_context = HydraContext(config_loader=hydra.config_loader, callbacks=None)  # type: ignore[arg-type]
        built.config = hydra.compose_config("config", [*BASE, *typed], RunMode.MULTIRUN, with_log_configuration=False)
        return built

    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        yield build


def plan(sweeper: Any, *arguments: str) -> list[list[str]]:
    parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
    jobs = sweeper.plan(parser.parse_overrides([*sweeper._parse_config(), *arguments, *BASE]))
    return [[override for override in job.overrides if override not in BASE] for job in jobs]


@pytest.mark.parametrize(
    ("typed", "seeds"),
    [
        ("0-2", [0, 1, 2]),
        ("3-3", [3]),
        ("0-2,7", [0, 1, 2, 7]),
        ("7,0-1,1-2", [7, 0, 1, 2]),
        ("choice(0-1,4)", [0, 1, 4]),
        ("range(0,3)", [0, 1, 2]),
        ("5", [5]),
    ],
)
def test_ranges(sweeper, typed, seeds):
    assert plan(sweeper(), f"seed={typed}") == [[f"seed={seed}"] for seed in seeds]


def test_ranges_only_for_the_listed_keys(sweeper):
    assert plan(sweeper(), "suite=2024-10") == [["suite=2024-10"]]
    assert len(plan(sweeper(ranges=["train.batch_size"]), "train.batch_size=2-4")) == 3
    with pytest.raises(ConfigError, match="seed=0-2 is not an integer"):
        plan(sweeper(ranges=[]), "seed=0-2")
    with pytest.raises(ConfigError, match="seed=0-2 is not an integer"):
        plan(sweeper(), "seed='0-2'")


def test_empty_range_is_one_line(sweeper):
    with pytest.raises(ConfigError, match=r"^seed=4-0 is an empty range; write it upwards, as in seed=0-4$"):
        plan(sweeper(), "seed=4-0")


def test_observe_folds_what_shares_a_training(sweeper, capsys):
    jobs = plan(sweeper(), "predictor=linear,quadratic", "K=5,10,25,50,75,100", "seed=0-4")
    assert jobs == [["predictor=[linear,quadratic]", "K=[5,10,25,50,75,100]", f"seed={seed}"] for seed in range(5)]
    assert capsys.readouterr().out == "60 cells in 5 jobs\n"


@pytest.mark.parametrize(
    ("arguments", "folded"),
    [
        (["predictor=none,linear"], ["predictor=[none,linear]"]),
        (["predictor=choice(linear,trend)", "K=range(5,16,5)"], ["predictor=[linear,trend]", "K=[5,10,15]"]),
        (["predictor=[linear,trend],quadratic,linear"], ["predictor=[linear,trend,quadratic]"]),
        (["K=[5,10],[25]"], ["K=[5,10,25]"]),
        (["predictor=[linear,trend]", "K=[5,10]"], ["predictor=[linear,trend]", "K=[5,10]"]),
    ],
)
def test_folded_forms(sweeper, arguments, folded):
    assert plan(sweeper(), *arguments) == [folded]


def test_fold_is_the_same_science(sweeper):
    (job,) = plan(sweeper(), "predictor=linear,quadratic", "K=5,10")
    folded = resolve(composed(*BASE, *job))
    typed = resolve(composed(*BASE, "predictor=[quadratic,linear]", "K=[10,5]"))
    assert folded.run_id == typed.run_id


def test_fold_off(sweeper, capsys):
    jobs = plan(sweeper(fold=False), "predictor=linear,none", "K=5,10")
    assert jobs == [[f"predictor={p}", f"K={k}"] for p in ("linear", "none") for k in (5, 10)]
    assert capsys.readouterr().out == ""


def test_no_fold_unless_every_job_observes(sweeper, monkeypatch):
    monkeypatch.setattr("leapbench.config.resolve.resolve", lambda cfg: cfg)
    cells = [["predictor=linear", "K=5"], ["predictor=linear", "K=10"]]
    leap = [["mode=leap", *cell] for cell in cells]
    assert plan(sweeper(), "mode=leap", "predictor=linear", "K=5,10") == leap
    assert len(plan(sweeper(), "mode=observe,leap", "predictor=linear", "K=5,10")) == 4
    assert len(plan(sweeper(), "mode=observe", "predictor=linear", "K=5,10")) == 1


def test_params_are_treated_like_arguments(sweeper):
    params = {"predictor": "linear,trend", "seed": "0-1"}
    assert plan(sweeper(params=params)) == [["predictor=[linear,trend]", f"seed={seed}"] for seed in (0, 1)]
    assert plan(sweeper(params=params), "seed=9") == [["predictor=[linear,trend]", "seed=9"]]


def test_other_sweeps_are_hydras(sweeper):
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    arguments = ["train.interval=25,50", "optimizer.lr=1e-3", "+note='a b'", "seed=1,2"]
    parser = OverridesParser.create()
    (expected,) = BasicSweeper.split_arguments(parser.parse_overrides([*BASE, *arguments]), None)
    own = sweeper()
    own._compose = lambda job: composed(*(o for o in job if "note" not in o))
    assert [job.overrides for job in own.plan(parser.parse_overrides([*BASE, *arguments]))] == expected


@pytest.mark.parametrize(
    ("argument", "error", "text"),
    [
        ("K=5,abc", ConfigError, "K=abc is not a number"),
        ("seed=0,-1", ConfigError, "seed=-1 must be 0 or more"),
        ("train.steps=200,1", ConfigError, "train.interval=50 is larger"),
        ("optimizer.lr=interval(0,1)", ConfigError, "intervals cannot be enumerated"),
        ("model=gpt2_nano,gtp2", MissingConfigException, "gtp2"),
    ],
)
def test_a_mistake_stops_the_sweep_before_anything_is_written(sweeper, tmp_path, argument, error, text):
    own = sweeper((argument, f"hydra.sweep.dir={tmp_path}/sweep"))
    own.launcher = object()  # a launch would fail in another way
    with pytest.raises(error, match=text):
        own.sweep([*BASE, argument])
    assert list(tmp_path.iterdir()) == []


class Launcher:
    """Ends the jobs as told and remembers what it was given."""

    def __init__(self, *ends: Any) -> None:
        self.ends = list(ends)
        self.batches: list[Any] = []

    def launch(self, batch: Any, initial_job_idx: int) -> list[JobReturn]:
        self.batches.append((initial_job_idx, batch))
        jobs = []
        for _ in batch:
            end, job = self.ends.pop(0), JobReturn()
            failed = isinstance(end, Exception)
            job.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
            job.return_value = end if failed else {"status": end, "run_id": f"id-{end}"}
            jobs.append(job)
        return jobs


def test_sweep_outlives_failing_jobs_and_sums_up(sweeper, tmp_path):
    typed = ("seed=0-4", "predictor=linear", f"hydra.sweep.dir={tmp_path}/sweep")
    own = sweeper(typed, max_batch_size=2)
    own.launcher = launcher = Launcher("failed", "completed", ValueError("x"), "diverged", "skipped")
    run_id = own.plan(OverridesParser.create().parse_overrides([*BASE, *typed[:2]]))[2].config.run_id
    line = f"sweep: 1 completed, 1 skipped (id-skipped), 1 diverged (id-diverged), 2 failed (id-failed {run_id})"
    with pytest.raises(SweepError) as caught:
        own.sweep([*BASE, *typed[:2]])
    assert str(caught.value) == line
    assert [(start, len(batch)) for start, batch in launcher.batches] == [(0, 2), (2, 2), (4, 1)]
    kept = OmegaConf.load(tmp_path / "sweep" / "multirun.yaml").hydra.overrides.task
    assert list(kept) == [*BASE, "seed=0-4", "predictor=linear"]


def test_runs_that_have_ended_are_reported_and_not_launched(sweeper, tmp_path, capsys):
    typed = ("seed=0-1", "predictor=linear", f"hydra.sweep.dir={tmp_path}/sweep")
    own = sweeper(typed)
    own.launcher = launcher = Launcher("completed")
    arguments = [*BASE, *typed[:2], f"results_dir={tmp_path}"]
    first, second = own.plan(OverridesParser.create().parse_overrides(arguments))
    end = {"schema": SCHEMA, "status": "completed", "reason": None}
    for job in (first, second):
        folder = job.config.folder
        folder.mkdir(parents=True)
        write_json(folder / META, {"code": code_of(job.config.science())})
        write_json(folder / SUMMARY, end | {"status": "completed" if job is first else "failed"})
    own.sweep(arguments)  # a failed run is run again
    assert [len(batch) for _, batch in launcher.batches] == [1]
    write_json(folder / SUMMARY, end)
    capsys.readouterr()
    own.sweep(arguments)
    assert len(launcher.batches) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "sweep: 2 completed, 0 skipped, 0 diverged, 0 failed"


def test_a_dry_run_prints_its_jobs_and_runs_nothing(sweeper, tmp_path, capsys):
    typed = ("seed=0-1", "mode=leap", "K=5", "predictor=linear", f"hydra.sweep.dir={tmp_path}/sweep")
    own = sweeper(typed, dry_run=True)
    own.launcher = object()  # a launch would fail
    assert own.sweep([*BASE, *typed[:4], "predictor=linear,none", "suite=s", f"results_dir={tmp_path}"]) == []
    runs = [PlannedRun.parse(line) for line in capsys.readouterr().out.splitlines()]
    assert len({run.run_id for run in runs}) == 4
    assert all(run.folder == tmp_path / "s" / run.run_id for run in runs)
    assert [run.kind for run in runs[:1] + runs[-1:]] == [("gpt2_nano", "stdlib", "linear"), ("gpt2_nano", "stdlib")]
    assert list(tmp_path.iterdir()) == []


def test_seeds_of_a_cell_are_composed_once_with_the_same_identity(sweeper):
    own, compose_one, cells = sweeper(), sweeper()._compose, []
    own._compose = lambda job: (cells.append(job), compose_one(job))[1]
    jobs = own.plan(OverridesParser.create().parse_overrides([*BASE, "protocol=exact,paper", "seed=0-2"]))
    assert len(cells) == 2
    alone = [resolve(composed(*job.overrides)).run_id for job in jobs]
    assert [job.config.run_id for job in jobs] == alone
    assert len(set(alone)) == 6


def test_a_cell_that_reads_the_seed_is_composed_for_each(sweeper):
    arguments = [*BASE, "seed=1,2", "optimizer.lr=${seed}"]
    jobs = sweeper().plan(OverridesParser.create().parse_overrides(arguments))
    assert [job.config.optimizer.lr for job in jobs] == [1.0, 2.0]
    conf = [path for path in (PROJECT / "conf").rglob("*.yaml") if "seed}" in path.read_text()]
    assert conf == [], "the sweeper composes the seeds of a cell once; no yaml may read the seed"


def test_a_sweep_without_failures_returns(sweeper, tmp_path, capsys):
    own = sweeper(("seed=0-1", f"hydra.sweep.dir={tmp_path}"))
    own.launcher = Launcher("completed", "completed")
    assert len(own.sweep([*BASE, "seed=0-1"])) == 1
    assert capsys.readouterr().out.endswith("sweep: 2 completed, 0 skipped, 0 diverged, 0 failed\n")


@pytest.mark.parametrize("choice", ["none", "linear", "[linear,quadratic]", "[linear,none]", "persistence", "[]"])
def test_every_way_to_choose_predictors_composes(choice):
    config = resolve(composed(*BASE, f"predictor={choice}"))
    names = {name for name in choice.strip("[]").split(",") if name not in ("none", "")}
    assert set(config.predictors) == (set() if choice == "none" else names | {"persistence", "average"})


@pytest.fixture
def known_rates(monkeypatch):
    """Every learning rate has been tuned."""
    monkeypatch.setattr("leapbench.config.resolve.tuned_lr", lambda config: 0.01)


@pytest.mark.parametrize("path", sorted((PROJECT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_compose(known_rates, path):
    config = resolve(composed(f"experiment={path.stem}", *BASE))
    if path.stem.startswith("leap_verify"):
        assert config.horizons == [5, 10, 25, 50, 75, 100]
        assert (config.train.steps, config.train.interval, config.schedule.warmup) == (2000, 50, 100)
    if path.stem.startswith("ttb_"):
        published = path.stem.endswith("_published")
        assert (config.mode, config.optimizer.lr_from) == ("leap", "published" if published else "tuned")
        assert config.horizons[0] % config.train.interval == 0  # PDT's tau counts snapshot intervals


def specs() -> dict[str, dict[str, Any]]:
    return {path.stem: specification(path.stem) for path in sorted((PROJECT / "sweeps").glob("*.yaml"))}


def axes_of(spec: dict[str, Any], own: dict[str, Any]) -> dict[str, list[str]]:
    axes = spec.get("axes", {}) | own.get("axes", {})
    return {key: [str(v) for v in value] if isinstance(value, list) else [str(value)] for key, value in axes.items()}


LEAPING = ("ttb_", "tune_", "leap_overhead", "layerpipe2", "learning_rate_factors")


def command_lines() -> list[tuple[str, ...]]:
    """Every distinct command line of the observing sweeps; tables that share runs share it."""
    lines = [line for name in specs() if not name.startswith(LEAPING) for line in commands(name, [])]
    return list(dict.fromkeys(tuple(line) for line in lines if "experiment=ttb_text" not in line))


@pytest.mark.parametrize("line", command_lines(), ids=lambda line: line[2])
def test_sweep_files_compose(sweeper, line):
    assert line[:2] == ("train.py", "-m") and line[2].startswith("suite=")
    jobs = plan(sweeper(), *line[2:], "seed=42")  # one seed is enough to see that it composes
    rates = next((word.count(",") + 1 for word in line if word.startswith("optimizer.lr=")), 1)
    assert len(jobs) == rates * (1 + any(override.startswith("protocol=[exact,paper],") for override in line))


def leaping_lines() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, spec, command) of the sweeps with mode=leap, where every cell is a job."""
    return [
        (name, spec, own)
        for name, spec in specs().items()
        for own in spec.get("commands", [{}])
        if name.startswith(LEAPING) or "experiment=ttb_text" in own.get("overrides", [])
    ]


@pytest.mark.parametrize(("name", "spec", "own"), leaping_lines(), ids=lambda part: part if type(part) is str else "")
def test_leaping_sweeps_compose(sweeper, known_rates, name, spec, own):
    overrides = [*spec.get("overrides", []), *own.get("overrides", [])]
    axes = axes_of(spec, own)
    for end in (0, -1):  # the first value of every axis, and the last
        cell = [f"{key}={values[end].split('-')[0] if key == 'seed' else values[end]}" for key, values in axes.items()]
        (job,) = sweeper().plan(OverridesParser.create().parse_overrides([*overrides, *cell]))
        assert job.config.mode == "leap"
        plain = "predictor=none" in job.overrides or "layerpipe2" in name  # whose experiments have none
        assert len(job.config.predictors) == (not plain)


@pytest.mark.parametrize(("name", "spec", "own"), leaping_lines(), ids=lambda part: part if type(part) is str else "")
def test_leaping_sweeps_choose_what_exists(name, spec, own):
    for group in ("experiment", "predictor", "schedule"):
        for value in axes_of(spec, own).get(group, []):
            assert (PROJECT / "conf" / group / f"{value}.yaml").is_file()


def methods(name: str) -> set[tuple[str, ...]]:
    """The (experiment, schedule, predictor, leap group, rule, K, gate) of a sweep, "" where the experiment decides."""
    found: set[tuple[str, ...]] = set()
    keys = ("experiment", "schedule", "predictor", "leap", "leap.rule", "K", "leap.gate")
    spec = specs()[name]
    for own in spec.get("commands", [{}]):
        fixed = dict(o.split("=", 1) for o in (*spec.get("overrides", []), *own.get("overrides", [])))
        axes = {"schedule": ["cosine"]} | {key: [value] for key, value in fixed.items()} | axes_of(spec, own)
        found |= set(product(*(axes.get(key, [""]) for key in keys)))
    return found


def test_every_tuned_row_is_tuned():
    tuned = {cell for name in specs() if name.startswith("tune_") for cell in methods(name)}
    scored = {cell for cell in methods("ttb_embedded") if not cell[0].endswith("_published")}
    assert len(scored) > 50
    assert scored <= tuned


def test_sweep_files_have_the_same_keys():
    for spec in specs().values():
        assert {"title", "published", "tables", "suite"} <= set(spec) | {"suite" for own in spec.get("commands", [])}
        assert set(spec) <= {"title", "published", "tables", "overrides", "axes", "suite", "commands"}
        assert all(set(own) <= {"suite", "overrides", "axes"} for own in spec.get("commands", []))
        assert all("seed" in axes_of(spec, own) for own in spec.get("commands", [{}]))


def test_a_twin_says_only_what_is_different():
    paper, twin = specs()["leap_verify"], specs()["leap_verify_embedded"]
    assert twin["tables"] == paper["tables"] and twin["overrides"] == paper["overrides"]
    assert twin["axes"] == {key: values for key, values in paper["axes"].items() if key != "protocol"} | {
        "seed": "42-44"
    }
    slow = specs()["leap_verify_embedded_lr5e-5"]
    assert (slow["axes"], slow["overrides"]) == (twin["axes"], [])


@pytest.mark.parametrize("queued", [False, True])
def test_what_an_interrupted_sweep_says(tmp_path, monkeypatch, queued):
    from hydra_plugins.leap_sweeper import Job, _how_to_go_on

    configs = [resolve(composed(*BASE, "predictor=none", f"seed={seed}")) for seed in range(3)]
    for config in configs:
        config.results_dir, config.suite = str(tmp_path), "my suite"
    configs[0].folder.mkdir(parents=True)
    write_json(configs[0].folder / SUMMARY, {"status": "completed", "reason": None})
    monkeypatch.setattr("sys.argv", ["train.py", "-m", "K=[5, 10]"])
    said = _how_to_go_on([Job([], config) for config in configs], queued)
    assert said == "1 of 3 runs have ended" + (
        "; jobs stay in the queue: scripts/status.py 'my suite' shows them, scancel ends them"
        if queued
        else ", the same command continues where it stopped: python train.py -m 'K=[5, 10]'"
    )
