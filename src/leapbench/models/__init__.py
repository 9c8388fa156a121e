"""Networks. A family is one file that builds its networks and gives their final hidden states: texts and images.

These functions are all the rest of the package knows of a network beyond `torch.nn.Module`; a run imports the family
that it trains.
"""
