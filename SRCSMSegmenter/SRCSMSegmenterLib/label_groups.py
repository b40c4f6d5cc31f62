# SPDX-License-Identifier: Apache-2.0
"""Groups of labels, such as body systems, under which a panel lists the organs of a network."""

from collections.abc import Collection, Mapping, Sequence

from .texts import is_name

Groups = Mapping[str, Sequence[str]]
"""Names of labels by the name of their group, in the order in which they are listed."""


def group_faults(groups: Groups, labels: Collection[str]) -> list[str]:
    """List what is wrong with groups of labels, a sentence each."""
    faults, seen = [], set()
    for group, members in groups.items():
        if not is_name(group):
            faults.append(f"The group {group!r} is no name; use letters and digits, on one line.")
        for label in members:
            if label not in labels:
                faults.append(f"The group {group!r} names {label!r}, which is no label.")
            elif label in seen:
                faults.append(f"The label {label!r} is in a group twice.")
            seen.add(label)
    return faults


def groups_of(groups: Groups, labels: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the groups of some of the labels; groups without any are left out."""
    kept = {
        group: tuple(label for label in members if label in labels)
        for group, members in groups.items()
    }
    return {group: members for group, members in kept.items() if members}
