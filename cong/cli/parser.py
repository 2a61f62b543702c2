"""How commands take their options."""

import argparse
from collections.abc import Sequence
from typing import Any

from cong.config.spelling import nearest, num_edits

_MAX_EDITS = 2
"""What is farther away is no misspelling, and naming it would mislead."""


class Parser(argparse.ArgumentParser):
    """Tells of an unknown option where it stands: with the command's own usage, and the option that is nearest."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Options as they are known; what is unknown ends the command."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            wrong = unknown[0].partition("=")[0]
            near = [name for name in nearest(wrong, known) if num_edits(wrong, name) <= _MAX_EDITS]
            hint = f"; the nearest known one is {near[0]}" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown
