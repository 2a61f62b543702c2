"""Samples in a terminal: every answer, its colours, and nothing that a terminal would obey."""

from rich.console import Console

from cong.report import Comparison, Response, Samples, Token, samples_to_rich


def shown(samples: Samples, *, has_colours: bool = False) -> str:
    console = Console(width=100, force_terminal=has_colours, color_system="truecolor" if has_colours else None)
    with console.capture() as capture:
        console.print(samples_to_rich(samples))
    return capture.get()


def pair(*responses: Response, prompt: str = "ask") -> Samples:
    return Samples([Comparison(prompt, responses)], ("aligned", "base"))


def test_each_answer_has_its_reward_and_mean_log_ratio() -> None:
    samples = pair(
        Response("ideal", [Token("perfect")]),
        Response("contrast", [Token("go", (-1.0, -2.0), 1.0), Token("od", (-1.0, -1.5), 0.5)], 0.25),
    )
    lines = shown(samples).splitlines()
    assert "gold reward" in lines[1]
    assert [line.split() for line in lines if "perfect" in line] == [["ideal", "perfect"]]
    assert [line.split() for line in lines if "good" in line] == [["contrast", "0.25", "+0.75", "good"]]


def test_without_rewards_there_is_no_column_of_them() -> None:
    assert "gold reward" not in shown(pair(Response("base", [Token("x", (-1.0, -1.0), 0.0)])))


def test_colours_say_who_finds_a_token_likelier_and_by_how_much() -> None:
    tokens = [Token(name, (0.0, 0.0), ratio) for name, ratio in [("F", 9.0), ("f", 1.0), ("n", 0.0), ("A", -9.0)]]
    text = shown(pair(Response("all", tokens)), has_colours=True)
    full, faint, none, against = (text.partition(f"m{token.text}\x1b")[0].rpartition("\x1b[")[2] for token in tokens)
    assert full == "1;38;2;75;166;224"
    assert none == "38;2;140;140;140"
    assert against == "1;38;2;240;138;60"
    assert faint not in (full, none)


def test_a_terminal_obeys_nothing_that_a_model_says() -> None:
    text = shown(pair(Response("bad", [Token("\x1b[2J\x07")]), prompt="\x1b]0;title\x07"))
    assert "\x1b" not in text
    assert "␛[2J␇" in text
