"""Networks. A family is one file that builds its networks and gives their final hidden states: texts and images.

The rest of the package knows a network as a `torch.nn.Module` and by these functions; a run imports the family that it
trains.
"""
