"""What the contrast does to a few prompts, looked at token by token before anything large is run."""

from cong.look.looking import Answer, Look, decodings, look
from cong.look.steps import Choice, Step, read_steps
from cong.look.views import STEPS_LEGEND, look_page, samples_of, steps_table

__all__ = [
    "STEPS_LEGEND",
    "Answer",
    "Choice",
    "Look",
    "Step",
    "decodings",
    "look",
    "look_page",
    "read_steps",
    "samples_of",
    "steps_table",
]
