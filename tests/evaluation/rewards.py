"""Reward functions as users write them, right and wrong."""

import math


def share_of_vowels(prompt: str, answer: str) -> float:
    return sum(letter in "aeiou" for letter in answer) / len(answer) if answer else 0.0


def nan_for_b(prompt: str, answer: str) -> float:
    return math.nan if answer == "b" else 0.5


def too_large(prompt: str, answer: str) -> float:
    return 2.0


def failing(prompt: str, answer: str) -> float:
    raise KeyError(answer)


def says_text(prompt: str, answer: str) -> str:
    return "good"


def one_argument(answer: str) -> float:
    return 1.0


from os.path import join  # noqa: E402, F401  a function that this module does not define
