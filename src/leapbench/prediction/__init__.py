"""Predicting the weights of a network in training, in any training loop: imports torch, nothing of the benchmark."""
