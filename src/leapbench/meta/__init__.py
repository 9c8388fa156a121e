"""Training the networks of learned predictors on recorded trajectories."""
