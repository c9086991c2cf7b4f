"""What a profile of `toprovar calibrate` settles among the options."""

from __future__ import annotations

from collections.abc import Mapping

from . import option_checks as check
from .calibration.profile import Profile
from .calibration.use import Calibrated, option_values
from .errors import OptionError, ProfileError
from .option_fields import FIELDS, UNSET, checked
from .policies.registry import BY_CRITERION


def profile_values(given: object) -> tuple[dict[str, object], dict[str, object], Calibrated | None]:
    """What the profile binds, what it brings along, and what it is of; nothing without one.

    Args:
        given: the option `profile`, as it was given.

    Raises:
        OptionError: no name of a file.
        ProfileError: a file that cannot be read, or that holds a setting that is not valid.
    """
    if given is UNSET:
        return {}, {}, None
    name = checked("profile", given)
    if name is None:
        return {}, {}, None
    bound, carried, calibrated = option_values(Profile.load(name), name)
    try:
        for values in (bound, carried):
            values.update({option: checked(option, value) for option, value in values.items()})
    except OptionError as error:
        raise ProfileError(f"profile='{name}': settings.{error}") from None
    return bound, carried, calibrated


def policy_name(given: object, profile: str | None, bound: Mapping[str, object]) -> object:
    """The policy that is given, or the profile's, or the default.

    Raises:
        OptionError: another one than the profile was measured with, or one that profiles do not hold.
    """
    default = bound.get("policy", FIELDS["policy"].metadata["default"])
    name = default if given is UNSET else checked("policy", given)
    if bound and name not in BY_CRITERION:
        raise OptionError(
            f"policy={name!r}: expected {' or '.join(map(repr, BY_CRITERION))} with a profile, "
            f"which holds their decisions alone; nearest valid: {BY_CRITERION[0]!r}, or no profile"
        )
    if bound and name != default:
        raise contradiction(profile, "policy", name, default)
    return name


def contradiction(profile: str | None, name: str, value: object, bound: object) -> ProfileError:
    """The error of a setting that the profile was not measured with."""
    return ProfileError(
        f"{name}={check.shown(value)}: the profile '{profile}' holds for {name}={check.shown(bound)} alone; "
        f"nearest valid: {check.shown(bound)}, or calibrate again with the other value"
    )
