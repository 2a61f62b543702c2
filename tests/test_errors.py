"""The tree of errors has one root, and its drawing shows every branch."""

import inspect

import cong.errors
from cong.errors import CongError


def test_every_error_hangs_in_the_tree_and_in_its_drawing() -> None:
    classes = [value for _, value in inspect.getmembers(cong.errors, inspect.isclass)]
    assert all(issubclass(error, CongError) for error in classes)
    drawing = inspect.getdoc(cong.errors) or ""
    assert all(error.__name__ in drawing for error in classes)


def test_errors_that_carry_facts_keep_them() -> None:
    assert cong.errors.InvalidRequest("top_p", "is 0").field == "top_p"
    assert cong.errors.Overloaded("full", retry_after_s=1.5).retry_after_s == 1.5
    assert "pip install 'cong[lora]'" in str(cong.errors.MissingExtra("lora", "peft"))
