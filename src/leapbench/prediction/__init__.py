"""Predicting the weights of a network in training, in a loop of one's own: imports torch, nothing of a benchmark."""
