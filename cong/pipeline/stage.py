"""What a stage of a pipeline is: a value with a name, a kind of work, what it takes and what it makes.

Knows no configuration and no files; which work a kind stands for is said in `work`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cong.config.models import NetworkConfig

Kind = Literal["train", "sample", "import", "evaluate", "sweep", "report"]


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    kind: Kind
    about: str
    """For people, in few words."""
    inputs: Mapping[str, str]
    """Role in the work -> name of the product that takes it."""
    section: str = ""
    """Dotted name of its own settings in the configuration."""
    makes: str = ""
    """Name of its product; empty = its own."""

    @property
    def product(self) -> str:
        """Name of what it makes."""
        return self.makes or self.name

    def taking(self, others: Mapping[str, str]) -> "Stage":
        """The same stage with products in place of others."""
        return replace(self, inputs={role: others.get(name, name) for role, name in self.inputs.items()})


@dataclass(frozen=True)
class Product:
    """Something that is given or that a stage has made."""

    fingerprint: str
    """Of its content: a stage runs again where one of its inputs has another."""
    location: str
    """Folder, file or URL."""
    network: NetworkConfig | None = None
    """How it is loaded, where it is a network."""
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    """What others need to know of it, such as how many records it has."""
