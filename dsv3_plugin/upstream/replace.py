"""Replacing attributes by name, and putting the originals back.

A target is written `package.module:attribute.path`. `Replacer` remembers what stood there, so that
applying twice is harmless and `restore` leaves no trace.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_ABSENT = object()


def resolve(target: str) -> tuple[Any, str]:
    """Split `module:a.b.c` into the object that holds the last attribute, and its name.

    Raises:
        ImportError: the module does not exist.
        AttributeError: a part of the path before the last does not exist.
    """
    module, _, path = target.partition(":")
    *parents, attribute = path.split(".")
    owner: Any = importlib.import_module(module)
    for name in parents:
        owner = getattr(owner, name)
    return owner, attribute


def lookup(target: str) -> Any:
    """The object a target names. Raises ImportError or AttributeError when it is not there."""
    owner, attribute = resolve(target)
    return getattr(owner, attribute)


@dataclass
class Replacer:
    """Sets attributes and restores them, in reverse order."""

    _originals: dict[str, tuple[Any, str, Any]] = field(default_factory=dict)

    def set(self, target: str, value: Any) -> None:
        """Put `value` at `target`; a target already replaced keeps its first original."""
        owner, attribute = resolve(target)
        # vars() rather than getattr: a staticmethod or an inherited attribute must be restored as
        # it was written, not as it reads.
        original = vars(owner).get(attribute, _ABSENT)
        self._originals.setdefault(target, (owner, attribute, original))
        setattr(owner, attribute, value)

    def wrap(self, target: str, wrapper: Callable[[Any], Any]) -> None:
        """Put `wrapper(original)` at `target`; once, however often it is asked for."""
        if target not in self._originals:
            self.set(target, wrapper(lookup(target)))

    def fill_in(self, target: str, value: Any) -> None:
        """Put `value` at `target` where nothing stands there."""
        owner, attribute = resolve(target)
        if not hasattr(owner, attribute):
            self.set(target, value)

    def restore(self) -> None:
        """Put every original back."""
        for owner, attribute, original in reversed(self._originals.values()):
            if original is _ABSENT:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, original)
        self._originals.clear()

    @property
    def active(self) -> bool:
        """Whether anything is replaced now."""
        return bool(self._originals)
