"""Settings of whatever can be done to a model, and what a run asks of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Self, cast

from .schema import AlsoNamed


class MethodSettings(metaclass=AlsoNamed):
    """Settings that `--method` takes: of an adapter, a baseline, a recipe or a change.

    A subclass is a frozen dataclass. Every member is something that a run asks of each method, with
    the answer of most of them.
    on_top: True if the first blocks are frozen, whatever the settings.
    needs_head: True if a classifier has to be trained, which a language model does not have.
    """

    on_top: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False

    @property
    def card_key(self) -> str:
        """The key of the card, where several cards have one class; "" if the class is enough."""
        return ""

    @property
    def trained_by(self) -> Any:
        """The objective that goes with the method; None stands for the plain one."""
        return None

    @property
    def fit_options(self) -> Mapping[str, Any] | None:
        """The keywords of `fit` that a published recipe fixes, the objective among them."""
        return None

    def settings_to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        # not dataclasses.asdict, which would turn settings inside into dicts without their class
        return {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}

    def with_settings(self, **values: Any) -> Self:
        """Return the same settings with these values."""
        return replace(cast(Any, self), **values)

    def suited_to(self, images: int, epochs: int, given: Collection[str] = ()) -> Self:
        """Return the settings that the method would choose for data of this size; here, self.

        given: names of the settings that the user has set, which stay. All are unused by methods
        that choose nothing.
        """
        return self
