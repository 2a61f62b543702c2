"""Models judged on held-out prompts: `python -m jobs.evaluate --config run.yaml`, here or by `ray job submit`.

Needs no Ray of its own: one process, one network at a time. Killed at any moment and started again it continues. Exit
codes: 0 the report is written, 2 wrong settings or answers that cannot be judged.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from cong.cli.config import add_config_options, resolve_config
from cong.cli.evaluate import print_plan, run_evaluation
from cong.cli.parser import Parser
from cong.errors import CongError
from cong.wording import told_by_the_machine
from jobs import connection
from jobs.planning import placed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    parser = Parser(prog="python -m jobs.evaluate", description="Judge models on held-out prompts.")
    add_config_options(parser)
    connection.add_submit(parser)
    arguments = parser.parse_args(argv)
    try:
        with told_by_the_machine():
            config = resolve_config(arguments)
            if arguments.dry_run:
                return print_plan(config)
            if arguments.submit is not None:
                from jobs.submit import submit

                return submit(config, arguments.submit, "evaluate", 0.0)
            folder = Path.cwd()
            return run_evaluation(placed(config, folder, is_unpacked=connection.is_unpacked(folder)))
    except CongError as error:
        print(f"jobs.evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jobs.evaluate: interrupted; run it again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
