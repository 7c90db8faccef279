"""The identity of a run: everything that can change its numbers, as plain data with a hash.

    config            the experiment's config; the mesh is not part of it, a run may go on with another one
    source            digests of the experiment's file and of the modules that it imports
    data              name, version and fingerprints of the splits
    versions          of Python, of this library and its code, and of the packages that compute
    implementations   the platform, the kind of device, settings of XLA and JAX, and the kernels that were chosen

Two runs with the same identity, as many devices and as many CPU cores compute the same numbers, bit for bit. Devices
and cores are not part of it, because a run may go on with another mesh; a study, whose runs share them, adds them.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from deeplearn.errors import UserError, unknown

SECTIONS = ("config", "source", "data", "versions", "implementations")
MAY_CHANGE = ("mesh",)  # of the config
_ABSENT = "absent"

Identity = dict[str, dict[str, Any]]


def identify(experiment, source, devices=None) -> Identity:
    """The identity of an experiment on the devices that are here; traces a train step, and computes nothing.

    Args:
      experiment: an Experiment, wired with its data.
      source: the identity.source.Source that it was built from.
      devices: those of the mesh, JAX's own unless given.
    """
    from deeplearn.data import fingerprint
    from deeplearn.identity import source as sources
    from deeplearn.identity import versions

    config = {name: value for name, value in experiment.config.to_dict().items() if name not in MAY_CHANGE}
    identity = {
        "config": config,
        "source": sources.digests(source),
        "data": fingerprint.fingerprint(experiment.data),
        "versions": versions.versions(source.libraries),
        "implementations": versions.machine() | versions.kernels(experiment, devices),
    }
    return json.loads(json.dumps(identity, allow_nan=False))  # as it is read back: tuples are lists


def digest(identity: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the identity's SHA-256.

    >>> digest({"config": {"seed": 0}}) == digest({"config": {"seed": 0}}) != digest({"config": {"seed": 1}})
    True
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, list[str]]:
    """By section, each field that differs and its two values; a section that only one of them has is not compared.

    >>> differences({"config": {"seed": 0, "steps": 5}}, {"config": {"seed": 1, "steps": 5}})
    {'config': ['config.seed is 0 there and 1 here']}
    """
    result = {}
    for section in (name for name in SECTIONS if name in there and name in here):
        old, new = fields(there[section]), fields(here[section])
        lines = [
            f"{section}.{name} is {old.get(name, _ABSENT)} there and {new.get(name, _ABSENT)} here"
            for name in old | new
            if old.get(name, _ABSENT) != new.get(name, _ABSENT) and not (section == "config" and name in MAY_CHANGE)
        ]
        if lines:
            result[section] = lines
    return result


def check(
    place: Any,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    accept: Collection[str] = (),
    acceptable: Collection[str] = SECTIONS,
) -> list[str]:
    """The accepted differences between the identity of what lies in a directory and the present one.

    Args:
      place: the directory, for the message.
      there, here: the two identities.
      accept: sections that may differ.
      acceptable: those that the user may accept.

    Raises:
      UserError: other sections differ; one line names each difference.
    """
    differing = differences(there, here)
    if refused := [section for section in differing if section not in accept]:
        lines = [line for section in refused for line in differing[section]]
        old = fields(there["config"]) if "config" in refused else {}
        name = differing["config"][0].split(" ", 1)[0].removeprefix("config.") if old else ""
        hint = f" (--config.{name}={old[name]})" if name in old else ""
        remedy = f"choose another --workdir, or put that back{hint}"
        if set(refused) <= set(acceptable):
            remedy += f", or go on with it and record it: --accept={','.join([*accept, *refused])}"
        raise UserError(f"{place} was made with other {', '.join(refused)}: {', '.join(lines)}; {remedy}")
    return [line for lines in differing.values() for line in lines]


def parse_accept(names: Collection[str]) -> tuple[str, ...]:
    """The sections that --accept names.

    Raises:
      UserError: there is no such section.

    >>> parse_accept(["data", "versions"])
    ('data', 'versions')
    """
    for name in names:
        if name not in SECTIONS:
            raise unknown("part of the identity in --accept", name, SECTIONS)
    return tuple(names)


def fields(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted path.

    >>> fields({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    result = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        result |= fields(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return result
