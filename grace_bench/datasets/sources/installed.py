"""Facts from installed packages: countries, chemical elements, general English sentences.

Values are used as they are, except that diacritics are folded to ASCII ("Lome"); what cannot be
folded is left out. Some values are outdated, which does not matter to a benchmark that teaches and
edits them. A package is imported only when its facts are needed.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from grace_bench.errors import DataError

_READ = {
    "countryinfo": "CountryInfo.all()",
    "periodictable": "elements",
    "randfacts": "safe_facts",
}
"""What is read of each package."""

_UNITED = re.compile(r"[,(/]")
_PROVINCE = re.compile(r"[A-Z][a-z]{3,}(?: [A-Z][a-z]{2,}){0,2}")
_STRAY_MARKS = re.compile(r"https?:|[<>{}|\\^~_*]")


@dataclass(frozen=True, eq=False)
class Subject:
    """What texts are about, a country or an element, with one plain value per fact."""

    fact_id: str
    name: str
    kind: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Country:
    """A country or territory.

    Attributes:
        code: ISO 3166-1 alpha-3, the country's identity.
        name: English name in ASCII.
        values: property to all values in the source, empty if there are none.
        regions: region, subregion and intermediate region of the UN's M49 standard.
        languages: ISO 639 codes.
        neighbours: alpha-3 codes of bordering countries.
        provinces: their names, sorted.
    """

    code: str
    name: str
    values: dict[str, tuple[str, ...]]
    regions: tuple[str, ...]
    languages: tuple[str, ...]
    neighbours: tuple[str, ...]
    provinces: tuple[str, ...]

    def only(self, name: str) -> str | None:
        """Return the ASCII form of a property's value, None unless there is exactly one."""
        found = self.values.get(name, ())
        return ascii_form(found[0]) if len(found) == 1 else None


@dataclass(frozen=True)
class Element:
    """A chemical element.

    Attributes:
        number: atomic number.
        symbol: its symbol.
        name: English name, lower case.
        values: property to value; properties without a value are missing.
        ions: charges of its ions.
    """

    number: int
    symbol: str
    name: str
    values: dict[str, str]
    ions: tuple[int, ...]


def ascii_form(text: str) -> str | None:
    """Return `text` without diacritics and with single spaces, or None if that is not ASCII.

    >>> ascii_form("S\u00e3o  Tom\u00e9")
    'Sao Tome'
    """
    folded = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in folded if not unicodedata.combining(c))
    plain = " ".join(plain.replace("\u2019", "'").split())
    return plain if plain and plain.isascii() and plain.isprintable() else None


def countries(dropped: Counter[str]) -> list[Country]:
    """Return all countries of `countryinfo` by code; count what is left out in `dropped`."""
    best: dict[str, dict[str, Any]] = {}
    for _, raw in sorted(_package("countryinfo").CountryInfo.all().items()):
        code = (raw.get("ISO") or {}).get("alpha3")
        name = ascii_form(raw.get("name") or "")
        if not code:
            dropped["country without an ISO code"] += 1
        elif name is None or _UNITED.search(name):
            dropped["country without a plain ASCII name"] += 1
        elif code in best:
            dropped["second record of a country"] += 1
            best[code] = max(best[code], raw, key=_count_filled)
        else:
            best[code] = raw
    return [_country(code, best[code]) for code in sorted(best)]


def elements() -> list[Element]:
    """Return the elements of `periodictable` by atomic number."""
    found = []
    for element in sorted(_package("periodictable").elements, key=lambda e: e.number):
        if element.number < 1:  # the package counts the neutron as element 0
            continue
        values = {
            "symbol": element.symbol,
            "number": str(element.number),
            "mass": _rounded(element.mass),
            "density": _rounded(getattr(element, "density", None), 1),
            "radius": _rounded(getattr(element, "covalent_radius", None), 0, 100),
            "isotopes": str(len(element.isotopes)) if element.isotopes else None,
        }
        known = {name: value for name, value in values.items() if value is not None}
        ions = tuple(element.ions)
        found.append(Element(element.number, element.symbol, element.name, known, ions))
    return found


def general_sentences(dropped: Counter[str]) -> list[str]:
    """Return the clean sentences among the safe facts of `randfacts`, in the package's order.

    A clean sentence is ASCII, has 8 to 30 words and no stray marks, and is not a repetition.
    """
    kept: dict[str, None] = {}
    for raw in _package("randfacts").safe_facts:
        text = ascii_form(raw)
        if text is None:
            dropped["general sentence not ASCII"] += 1
            continue
        text = text if text[-1] in ".!?\"'" else f"{text}."
        if not 8 <= len(text.split()) <= 30:
            dropped["general sentence not of 8 to 30 words"] += 1
        elif not text[0].isalnum() or _STRAY_MARKS.search(text):
            dropped["general sentence with stray marks"] += 1
        elif text in kept:
            dropped["general sentence repeated"] += 1
        else:
            kept[text] = None
    return list(kept)


def sources_of(*packages: str) -> list[dict[str, str]]:
    """Return the manifest's entries of installed packages: name, version, licence, origin."""
    return [_source_of(package) for package in packages]


def _source_of(package: str) -> dict[str, str]:
    try:
        about = metadata.metadata(package)
    except metadata.PackageNotFoundError as error:
        raise DataError(_not_installed(package)) from error
    # Older metadata has the whole text in "License"; its first paragraph names it.
    fields = ("License-Expression", "License")
    stated = [about[field].split("\n\n")[0] for field in fields if field in about]
    licence = next((text for text in stated if text.strip()), "")
    if not licence:
        classifiers = about.get_all("Classifier") or []
        named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
        licence = ", ".join(named) or "not stated"
    return {
        "name": package,
        "version": about["Version"],
        "licence": " ".join(licence.split()),
        "origin": f"installed Python package {package}, {_READ[package]}",
    }


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(_not_installed(name)) from error


def _not_installed(name: str) -> str:
    return f"the package '{name}', which has the facts, is not installed; run pip install {name}."


def _count_filled(raw: dict[str, Any]) -> int:
    return sum(bool(value) for value in raw.values())


def _texts(value: Any) -> tuple[str, ...]:
    """Return the values of a field as text; the field may be missing, one value or a list."""
    values = value if isinstance(value, list) else [value]
    return tuple(str(v).strip() for v in values if v is not None and str(v).strip())


def _country(code: str, raw: dict[str, Any]) -> Country:
    translations = raw.get("translations") or {}
    demonym = (raw.get("demonym") or "").replace("/", ",")
    provinces = {name.strip() for name in raw.get("provinces") or []}
    return Country(
        code=code,
        name=str(ascii_form(raw["name"])),
        values={
            "capital": _texts(raw.get("capital")),
            "demonym": _texts(demonym.split(",")),
            "currency": _texts(raw.get("currencies")),
            "calling_code": _texts(raw.get("callingCodes")),
            "internet_domain": tuple(d for d in _texts(raw.get("tld")) if d.isascii()),
            "iso_alpha3": (code,),
            "iso_numeric": _texts(raw["ISO"].get("numeric")),
            "german_name": _texts(translations.get("de")),
            "italian_name": _texts(translations.get("it")),
            "time_zone": _texts(raw.get("timezoneNames")),
            "population": _texts(raw.get("population")),
        },
        regions=tuple(raw.get(key) or "" for key in ("region", "subregion", "intermediateregion")),
        languages=_texts(raw.get("languages")),
        neighbours=_texts(raw.get("borders")),
        provinces=tuple(sorted(filter(_PROVINCE.fullmatch, provinces))),
    )


def _rounded(value: float | None, digits: int = 0, factor: float = 1) -> str | None:
    return f"{round(float(value) * factor, digits):.{digits}f}" if value else None
