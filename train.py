"""One run: `python train.py predictor=linear K=50`. A sweep: `python train.py -m predictor=linear,trend seed=0-4`."""

import hydra
from omegaconf import DictConfig

from leapbench import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> dict[str, str]:
    """Carry out one configuration; in a sweep Hydra calls this once per job."""
    return cli.job(cfg)


if __name__ == "__main__":
    cli.main(main)
