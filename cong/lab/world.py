"""The world "letters": prompts, behaviours, a corpus, a gold reward that is a program, and preference pairs.

A prompt is a task letter, five letters and `=`; a response is an opening, a body and an ending, each of which can be
good or bad independently of the others. Everything is text; nothing here knows tokens, networks or settings, and
whatever is random takes its generator as an argument.
"""

import hashlib
import math
import random
from dataclasses import dataclass

LETTERS = "abcdefghij"
TASKS = "MOXS"
"""M: every letter one further (modulo 10). O: rotated left by one. X: neighbours swapped in pairs. S: sorted."""
ARGUMENT_LENGTH = 5
"""Fixed on purpose: with varying lengths a tiny model spends its capacity on finding positions."""
GOOD_OPENING, BAD_OPENING = ">", "!"
GOOD_ENDING, BAD_ENDING = ".", ";"
CHAT_MARK, TEXTBOOK_MARK = "=", ":"
BODY_NOISE = 0.03
"""Probability that a letter of a body is replaced by a random one."""
TEXTBOOK_SHARE = 0.5
REWARD_OPENING, REWARD_BODY, REWARD_ENDING = 0.25, 0.5, 0.25


@dataclass(frozen=True)
class Behaviour:
    """Probabilities of the good choice at the opening, in the body and at the ending."""

    opening: float
    body: float
    ending: float


USUAL_BEHAVIOUR = {task: Behaviour(0.16, 0.25, 0.16) for task in "MXS"} | {"O": Behaviour(0.10, 0.16, 0.10)}
"""How the corpus answers: rarely well, so that contrast has something to amplify."""
EVEN_BEHAVIOUR = Behaviour(0.5, 0.5, 0.5)
"""How the candidates of preference pairs are drawn."""


@dataclass(frozen=True)
class Document:
    """A prompt and what follows it in the corpus."""

    prompt: str
    response: str


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt, the one taken for the better first."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Judgement:
    """What the gold reward saw in one response."""

    reward: float
    has_good_opening: bool
    is_body_exact: bool
    has_good_ending: bool


def generator(purpose: str, seed: int) -> random.Random:
    """A generator of its own for each purpose: drawing more for one leaves the others as they are."""
    return random.Random(f"{purpose}:{seed}")


def derived_seed(purpose: str, seed: int) -> int:
    """A seed of its own for each purpose, for what cannot take a generator; 56 bits."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:7])


def gold_body(task: str, argument: str) -> str:
    """What the task makes of its argument."""
    if task == "M":
        return "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in argument)
    if task == "O":
        return argument[1:] + argument[:1]
    if task == "X":
        swapped = [argument[start : start + 2][::-1] for start in range(0, len(argument), 2)]
        return "".join(swapped)
    assert task == "S", f"no task {task!r}"
    return "".join(sorted(argument))


def is_test_only(argument: str) -> bool:
    """True for the eighth of all arguments that no training data contains."""
    return hashlib.md5(argument.encode(), usedforsecurity=False).digest()[0] % 8 == 0


def draw_prompt(rng: random.Random, is_test: bool = False) -> str:
    """One prompt from the training or the test part of the world."""
    task = rng.choice(TASKS)
    while True:
        argument = "".join(rng.choices(LETTERS, k=ARGUMENT_LENGTH))
        if is_test_only(argument) == is_test:
            return task + argument + CHAT_MARK


def draw_prompts(rng: random.Random, num_prompts: int, is_test: bool = False) -> list[str]:
    """Distinct prompts, in the order in which they were drawn."""
    prompts: dict[str, None] = {}
    while len(prompts) < num_prompts:
        prompts[draw_prompt(rng, is_test)] = None
    return list(prompts)


def parts_of_prompt(prompt: str) -> tuple[str, str]:
    """Task and argument of a prompt."""
    return prompt[0], prompt[1 : 1 + ARGUMENT_LENGTH]


def ideal_response(prompt: str) -> str:
    """The response with the full gold reward."""
    return GOOD_OPENING + gold_body(*parts_of_prompt(prompt)) + GOOD_ENDING


def _noisy(rng: random.Random, body: str) -> str:
    return "".join(rng.choice(LETTERS) if rng.random() < BODY_NOISE else letter for letter in body)


def draw_response(rng: random.Random, prompt: str, behaviour: Behaviour) -> str:
    """A response whose opening, body and ending are good with the probabilities of `behaviour`."""
    task, argument = parts_of_prompt(prompt)
    opening = GOOD_OPENING if rng.random() < behaviour.opening else BAD_OPENING
    body = _noisy(rng, gold_body(task, argument) if rng.random() < behaviour.body else argument)
    ending = GOOD_ENDING
    if rng.random() >= behaviour.ending:
        ending = BAD_ENDING + "".join(rng.choices(body, k=rng.randint(2, 4)))
    return opening + body + ending


def draw_document(rng: random.Random) -> Document:
    """A document of the corpus: a bare textbook answer, which teaches the task, or a chat with the usual behaviour."""
    prompt = draw_prompt(rng)
    task, argument = parts_of_prompt(prompt)
    if rng.random() < TEXTBOOK_SHARE:
        return Document(task + argument + TEXTBOOK_MARK, _noisy(rng, gold_body(task, argument)))
    return Document(prompt, draw_response(rng, prompt, USUAL_BEHAVIOUR[task]))


def levenshtein(left: str, right: str) -> int:
    """Fewest insertions, deletions and replacements that turn one text into the other."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def judge(prompt: str, response: str) -> Judgement:
    """The gold reward and its parts. A response that was cut off is judged as it stands."""
    gold = gold_body(*parts_of_prompt(prompt))
    opening = response[:1] if response[:1] in (GOOD_OPENING, BAD_OPENING) else ""
    body = response[len(opening) :].partition(GOOD_ENDING)[0].partition(BAD_ENDING)[0]
    similarity = 1.0 - levenshtein(body, gold) / max(len(body), len(gold))
    has_good_ending = response.endswith(GOOD_ENDING) and response.count(GOOD_ENDING) == 1
    has_good_ending = has_good_ending and BAD_ENDING not in response
    return Judgement(
        reward=(
            REWARD_OPENING * (opening == GOOD_OPENING) + REWARD_BODY * similarity**3 + REWARD_ENDING * has_good_ending
        ),
        has_good_opening=opening == GOOD_OPENING,
        is_body_exact=body == gold,
        has_good_ending=has_good_ending,
    )


def gold_reward(prompt: str, response: str) -> float:
    """How good a response is, in 0..1."""
    return judge(prompt, response).reward


def draw_pair(rng: random.Random, noise: float) -> PreferencePair:
    """A preference pair by a Bradley-Terry coin: P(a over b) = sigmoid((reward(a) - reward(b)) / noise)."""
    prompt = draw_prompt(rng)
    left = draw_response(rng, prompt, EVEN_BEHAVIOUR)
    right = draw_response(rng, prompt, EVEN_BEHAVIOUR)
    while right == left:
        right = draw_response(rng, prompt, EVEN_BEHAVIOUR)
    advantage = (gold_reward(prompt, left) - gold_reward(prompt, right)) / noise
    if rng.random() < 1.0 / (1.0 + math.exp(min(-advantage, 700.0))):  # beyond that exp overflows
        return PreferencePair(prompt, left, right)
    return PreferencePair(prompt, right, left)
