"""Versions of what results depend on."""

import platform
from importlib.metadata import version

from cong import __version__


def software_versions() -> dict[str, str]:
    """Package -> version, for results and reports."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return {"cong": __version__, **{name: version(name) for name in packages}, "python": platform.python_version()}
