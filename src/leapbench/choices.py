"""Names that the configuration and the methods share, apart so that a wrong one is refused before torch is loaded."""

RULES = ("strict", "adaptive", "proximity", "always", "falling")
MOMENTS = ("keep", "reset", "published")
GATES = ("any", "not_chaotic", "stable", "confirmed")
