"""Train a learned predictor: `python meta_train.py network=nino trajectories=results/raw/trajectories`."""

import hydra
from omegaconf import DictConfig

from leapbench import cli
from leapbench.meta import command


@hydra.main(version_base="1.3", config_path="conf", config_name="meta_train")
def main(cfg: DictConfig) -> dict[str, str]:
    """Carry out one configuration; with -m Hydra calls this once per job."""
    return command.job(cfg)


if __name__ == "__main__":
    cli.main(main, command.answer)
