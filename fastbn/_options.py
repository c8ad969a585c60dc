"""Options of a layer that are checked whenever they are set, or that cannot be set again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Option:
    """An attribute whose value ``check(layer, value)`` validates, at construction and at every assignment.

    It has no ``__get__``: reading finds the value in the instance's own dictionary, at the speed of any attribute.
    """

    def __init__(self, check: Callable[[Any, Any], Any]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, layer: Any, value: Any) -> None:
        vars(layer)[self.name] = self.check(layer, value)


class FixedOption(Option):
    """An option that arrays were made by: setting it again would change nothing but what the layer says of itself."""

    def __set__(self, layer: Any, value: Any) -> None:
        if self.name in vars(layer):
            raise AttributeError(
                f"{self.name}: expected to be set when the layer is made, got an assignment: {value!r}"
            )
        super().__set__(layer, value)
