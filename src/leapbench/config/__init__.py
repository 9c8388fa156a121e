"""From Hydra's configuration to a validated run with an identity."""
