"""The two labellings of `facts_topics`: which class an entity had, and which it has now.

The older labelling groups the UN's regions and the blocks of the periodic table. The newer one
moves whole subgroups to another class, as when the topics of a court's decisions are redefined;
every rule reads a property of the entity that is in the installed packages or follows from the
atomic number. Classes and rules are ours and claim no authority.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grace_bench.datasets.sources.installed import Country, Element

NORTH_AMERICA = "North America"
SOUTH_AMERICA = "South America"
WEST_AFRICA = "West and Central Africa"
EAST_AFRICA = "East and Southern Africa"
MIDDLE_EAST = "North Africa and Western Asia"
SOUTH_ASIA = "Central and Southern Asia"
EAST_ASIA = "East and South-east Asia"
WEST_EUROPE = "Northern and Western Europe"
EAST_EUROPE = "Eastern and Southern Europe"
OCEANIA = "Oceania"
S_BLOCK = "s-block element"
P_BLOCK = "p-block element"
D_BLOCK = "d-block element"
F_BLOCK = "f-block element"

CLASSES = (
    NORTH_AMERICA,
    SOUTH_AMERICA,
    WEST_AFRICA,
    EAST_AFRICA,
    MIDDLE_EAST,
    SOUTH_ASIA,
    EAST_ASIA,
    WEST_EUROPE,
    EAST_EUROPE,
    OCEANIA,
    S_BLOCK,
    P_BLOCK,
    D_BLOCK,
    F_BLOCK,
)

_BY_SUBREGION = {
    "Northern America": NORTH_AMERICA,
    "Northern Africa": MIDDLE_EAST,
    "Western Asia": MIDDLE_EAST,
    "Central Asia": SOUTH_ASIA,
    "Southern Asia": SOUTH_ASIA,
    "Eastern Asia": EAST_ASIA,
    "South-eastern Asia": EAST_ASIA,
    "Northern Europe": WEST_EUROPE,
    "Western Europe": WEST_EUROPE,
    "Eastern Europe": EAST_EUROPE,
    "Southern Europe": EAST_EUROPE,
    "Australia and New Zealand": OCEANIA,
    "Melanesia": OCEANIA,
    "Micronesia": OCEANIA,
    "Polynesia": OCEANIA,
}
_BY_INTERMEDIATE_REGION = {
    "Caribbean": NORTH_AMERICA,
    "Central America": NORTH_AMERICA,
    "South America": SOUTH_AMERICA,
    "Western Africa": WEST_AFRICA,
    "Middle Africa": WEST_AFRICA,
    "Eastern Africa": EAST_AFRICA,
    "Southern Africa": EAST_AFRICA,
}


def country_classes(country: Country) -> tuple[str, str] | None:
    """Return a country's class in the older and in the newer labelling; None without a region.

    Moved are Central America (to South America), Middle Africa (to East and Southern Africa),
    the countries of Western Asia where Arabic is not spoken (to Eastern and Southern Europe),
    those of Eastern and Southern Europe that pay in euros (to Northern and Western Europe) and
    Micronesia (to East and South-east Asia).
    """
    _, subregion, intermediate = country.regions
    old = _BY_INTERMEDIATE_REGION.get(intermediate) or _BY_SUBREGION.get(subregion)
    if old is None:
        return None
    new = old
    if intermediate == "Central America":
        new = SOUTH_AMERICA
    elif intermediate == "Middle Africa":
        new = EAST_AFRICA
    elif subregion == "Western Asia" and "ar" not in country.languages:
        new = EAST_EUROPE
    elif old == EAST_EUROPE and "EUR" in country.values["currency"]:
        new = WEST_EUROPE
    elif subregion == "Micronesia":
        new = EAST_ASIA
    return old, new


def element_classes(element: Element) -> tuple[str, str]:
    """Return an element's class in the older and in the newer labelling.

    Moved are the actinides (to the d-block, where chemists had them until 1945) and the groups
    of copper and zinc, whose d shells are full (to the p-block).
    """
    number = element.number
    old = _block(number)
    if 89 <= number <= 102:
        return old, D_BLOCK
    if number in {29, 30, 47, 48, 79, 80, 111, 112}:
        return old, P_BLOCK
    return old, old


def _block(number: int) -> str:
    if number in {1, 2, 3, 4, 11, 12, 19, 20, 37, 38, 55, 56, 87, 88}:
        return S_BLOCK
    if 57 <= number <= 70 or 89 <= number <= 102:
        return F_BLOCK
    if any(start <= number < start + 10 for start in (21, 39, 71, 103)):
        return D_BLOCK
    return P_BLOCK
