"""Container images: whether a name stands for one image for ever."""

import re

_TAG = re.compile(r":(?P<tag>[\w][\w.-]*)$")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_MOVING = ("latest", "nightly", "main", "master", "stable", "edge", "dev")


def image_trouble(image: str) -> str | None:
    """Why an image's name may stand for another image tomorrow; None where it does not."""
    if _DIGEST.search(image):
        return None
    match = _TAG.search(image.rsplit("/", 1)[-1])
    if match is None:
        return "it has no tag, which means 'latest'; name a version or a digest"
    if match["tag"].split("-")[0] in _MOVING:
        return f"the tag {match['tag']!r} moves; name a version or a digest"
    if not any(letter.isdigit() for letter in match["tag"]):
        return f"the tag {match['tag']!r} holds no version; name a version or a digest"
    return None
