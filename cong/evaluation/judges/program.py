"""A judge that is a program: any importable function of prompt and answer, such as the truth of a synthetic world."""

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cong.config.evaluation import ProgramJudge
from cong.errors import ConfigError, EvaluationError
from cong.evaluation.answers import Answer
from cong.evaluation.judging import Measurement, Reading, prompt_text
from cong.schemas import content_key

RewardFunction = Callable[[str, str], float]


class GoldProgram:
    """Calls a function on every answer; its range is checked."""

    def __init__(self, name: str, settings: ProgramJudge) -> None:
        self.name = name
        self.sums_tokens = False
        self.reward_ends = (settings.low, settings.high)
        self.about = f"program {settings.function}, {settings.low:g} to {settings.high:g}"
        self._settings = settings
        self._function = load_function(settings.function)
        self.fingerprint = _fingerprint(settings, self._function)

    def measure(self, answers: Sequence[Answer]) -> Iterator[Reading]:
        """The function's value of each answer."""
        low, high = self._settings.low, self._settings.high
        for answer in answers:
            try:
                value = float(self._function(prompt_text(answer), answer.text))
            except EvaluationError:
                raise
            except Exception as error:  # whatever a foreign function may raise
                raise EvaluationError(
                    f"judge {self.name!r} ({self._settings.function}) fails on {answer.where}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if value < low or value > high:
                raise EvaluationError(
                    f"judge {self.name!r} says {value} of {answer.where}, outside of {low:g} to {high:g}; set low and "
                    "high to the range of the function"
                )
            yield Reading(answer, value)

    def is_enough(self, answer: Answer, measurement: Measurement) -> bool:
        """A number is all there is."""
        return True

    def reward(self, measurement: Measurement) -> float:
        """The number itself."""
        return measurement.value


def load_function(path: str) -> RewardFunction:
    """The function that `module:function` names; importing runs the module's code."""
    module_name, _, function_name = path.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(
            f"judge {path!r} is part of Python itself, which holds no rewards and much that does harm; name a "
            "function of your own"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"judge {path!r}: {module_name} cannot be imported ({error}); it must be installed or lie on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    own = sorted(name for name, value in vars(module).items() if _is_own(value, module_name) and name[0] != "_")
    if function is None:
        close = difflib.get_close_matches(function_name, own, n=1, cutoff=0.0)
        raise ConfigError(
            f"judge {path!r}: {module_name} has no {function_name}; nearest is {(*close, 'nothing')[0]!r}"
        )
    if not _is_own(function, module_name):
        raise ConfigError(
            f"judge {path!r} is no function that {module_name} defines; name the module where the function is written"
        )
    try:
        inspect.signature(function).bind("prompt", "answer")
    except TypeError as error:
        raise ConfigError(f"judge {path!r} cannot be called with (prompt, answer): {error}") from error
    loaded: RewardFunction = function
    return loaded


def _is_own(value: object, module_name: str) -> bool:
    return inspect.isfunction(value) and value.__module__ == module_name


def _fingerprint(settings: ProgramJudge, function: RewardFunction) -> str:
    """The module's source counts; what it imports does not."""
    source = Path(inspect.getfile(function)).read_bytes()
    return content_key(["program", settings.model_dump(), hashlib.sha256(source).hexdigest()])
