"""The 100 texts that the published thresholds of Leap+Verify (arXiv:2602.19580) were measured on.

Its code (github jmcentire/leap-verify, src/fingerprint/capture.py) goes through 21 templates in turn and fills each
one's blanks from short lists, in the order of BLANKS, with numpy's RandomState(0).
"""

from __future__ import annotations

import numpy as np

COUNT, SEED = 100, 0
BLANKS: dict[str, tuple[str, ...]] = {
    "country": ("France", "Japan", "Brazil", "Egypt", "Canada", "India", "Germany", "Australia"),
    "year": ("1969", "1776", "2000", "1945", "1989", "2020", "1066", "1492"),
    "compound": ("water", "salt", "glucose", "methane", "ethanol", "carbon dioxide"),
    "word": ("happy", "fast", "bright", "cold", "large", "quiet", "simple", "strong"),
    "phrase": ("good morning", "thank you", "how are you", "goodbye"),
    "n": tuple(map(str, range(1, 50))),
    "m": tuple(map(str, range(1, 50))),
}
TEMPLATES = (
    "The capital of {country} is",
    "In the year {year}, the most significant event was",
    "The chemical formula for {compound} is",
    "If all cats are animals and all animals breathe, then cats",
    "The number that comes after {n} is",
    "To solve {n} + {m}, you compute",
    "The opposite of '{word}' is",
    "Translate '{phrase}' to French:",
    "The plural of '{word}' is",
    "def fibonacci(n):\n    ",
    "import numpy as np\nnp.array([1, 2, 3]).",
    "for i in range(10):\n    print(",
    "Once upon a time, in a land far away,",
    "The sunset painted the sky in shades of",
    "She opened the door and found",
    "The gradient of the loss function with respect to",
    "In quantum mechanics, the wave function",
    "The Big O complexity of binary search is",
    "Hello, how are you today?",
    "Can you explain what machine learning is?",
    "What do you think about",
)


def prompts() -> list[str]:
    """The texts, always the same."""
    rng = np.random.RandomState(SEED)
    texts = []
    for number in range(COUNT):
        template = TEMPLATES[number % len(TEMPLATES)]
        blanks = {name: options for name, options in BLANKS.items() if f"{{{name}}}" in template}
        words = {name: options[rng.randint(len(options))] for name, options in blanks.items()}
        texts.append(template.format(**words))
    return texts
