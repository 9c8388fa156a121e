"""Writing the weights of a run while it trains, for learned predictors to be trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig, plain
from leapbench.nowcasters.trajectories import Recorder
from leapbench.prediction.clock import Clock
from leapbench.prediction.weights import FlatWeights


class Recording:
    """The trajectory of a run where `record_trajectory` asks for one; otherwise does nothing.

    Args:
        folder: of the run.
        weights: the live ones.
        clock: recording is no part of the training that it times.
        resumed: whether the run goes on from a checkpoint.

    Raises:
        ConfigError: the rows that the run had written are gone.
    """

    def __init__(self, config: RunConfig, folder: Path, weights: FlatWeights, clock: Clock, resumed: bool) -> None:
        self.config, self.weights, self.clock = config, weights, clock
        self._recorder: Recorder | None = None
        if config.record_trajectory:
            try:
                self._recorder = Recorder(
                    folder, weights.layout, config.train.steps, config.recording_interval, config.record_dtype, resumed
                )
            except ValueError as error:
                raise ConfigError(str(error)) from None
            if not resumed:
                self._recorder.record(0, weights.vector)

    def after(self, step: int) -> None:
        """Write a row if one is due after this step."""
        if self._recorder is not None and self._recorder.is_due(step):
            with self.clock.lap("eval"):
                self._recorder.record(step, self.weights.vector)

    def flush(self) -> None:
        """Everything is on disk when this returns."""
        if self._recorder is not None:
            self._recorder.flush()

    def finish(self, factor_at: Callable[[int], float], data_sha256: str) -> None:
        """The run is complete: say what the rows are.

        Args:
            factor_at: position -> what the learning rate is multiplied by in the update that leaves it.
        """
        if self._recorder is None:
            return
        config, every = self.config, self._recorder.every
        self._recorder.finish({
            "run_id": config.run_id, "model": plain(config.model), "dataset": config.dataset.name,
            "dataset_sha256": data_sha256, "optimizer": config.optimizer.name, "seed": config.seed,
            "batch_size": config.train.batch_size, "steps": config.train.steps,
            "rates": [config.optimizer.lr * factor_at(row * every) for row in range(self._recorder.rows)],
        })  # fmt: skip
