"""The values of the options of a run: refused before torch is imported, and as its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.registry import index, keys
from ..core.schema import METADATA, options_of
from ..runs.experiment import Experiment, schedules
from ..train.settings import Running
from .options import FIELDS, flag


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what the settings of a run refuse, before torch is imported.

    options: values by the names of their settings; None = not given.
    Raises: ConfigError; UnknownName.
    """
    values = {name: value for name, value in options.items() if value is not None}
    for name in FIELDS.keys() & values.keys():
        item: Field[Any] = FIELDS[name][0]
        item.metadata[METADATA].check(flag(name), values[name], item.type)
    # Data are checked elsewhere; the rest of the experiment checks itself.
    Experiment.of({"data": ""} | values)  # settings that contradict each other
    if "density" in values:
        _check_density(values.get("schedule"))
    check_teacher(str(values.get("objective")), values.get("teacher"))


def _check_density(schedule: str | None) -> None:
    # schedules that have such a setting
    dense = [
        name
        for name in schedules()
        if any(s["name"] == "density" for s in index()[name]["settings"])
    ]
    # A schedule is NAME:setting=value,...
    name = (schedule or "").partition(":")[0]
    if name not in dense:
        fix = "Try --schedule rigl --density 0.25."
        if name == "bdwp":
            fix = "Say how many of a group are kept: --schedule bdwp:pattern=2:8."
        got = f"it with {schedule or 'no --schedule'}"
        raise ConfigError("--density", got=got, want=f"{', '.join(dense)} with it", fix=fix)


def check_teacher(objective: str, teacher: str | None) -> None:
    """Check that a teacher is given with an objective that has one, and only then.

    objective: as given; teacher: its name or folder, None = none.
    Raises: ConfigError.
    """
    # A teacher may also stand inside --objective itself.
    has, wants = (
        teacher or "teacher=" in objective,
        objective.partition(":")[0] in keys("objective"),
    )
    if bool(has) != wants:
        got = f"{teacher or 'none'} with --objective {objective}"
        fix = "For example: --objective squarehead --teacher smollm2"
        want = f"{' or '.join(keys('objective'))} and the dense model, both or neither"
        raise ConfigError("--teacher", got=got, want=want, fix=fix)


def experiment_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an `Experiment`, from all options of a command.

    options: by name; those that are no settings of an experiment are left out there.
    """
    values = {name: value for name, value in options.items() if value is not None}
    if "density" in values:
        values["schedule"] = with_density(values["schedule"], values["density"])
    if (teacher := values.get("teacher")) is not None:
        # The first setting of an objective follows a colon, further ones a comma.
        mark = "," if ":" in values["objective"] else ":"
        # a run may resume from another folder, so that a path is absolute
        place = Path(teacher).resolve() if Path(teacher).exists() else teacher
        values["objective"] = f"{values['objective']}{mark}teacher={place}"
    return values


def with_density(schedule: str | None, density: float | None) -> str | None:
    """Return a schedule's text with the density added to its settings; None stays None.

    schedule: such as "rigl:every=10"; density: share of weights kept.
    """
    if schedule is None or density is None:
        return schedule
    return f"{schedule}{',' if ':' in schedule else ':'}density={density}"


def running_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `Running` out of all parameters of a verb."""
    return {item.name: options[item.name] for item, _ in options_of(Running)}
