"""Facts in installed packages: countries, chemical elements, general English sentences.

Values are read as they are and only cleaned of form: diacritics are folded to ASCII ("Lome"), and
what cannot be folded is left out. Nothing is added from elsewhere; some values are out of date,
which does not matter to a benchmark that teaches and edits them. The packages are imported when
their facts are asked for, so that a data set needs only the packages it uses.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from grace_bench.errors import DataError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence
    from types import ModuleType

_UNITED = re.compile(r"[,(/]")
_LICENCE_FIELDS = ("License-Expression", "License")
_PROVINCE = re.compile(r"[A-Z][a-z]{3,}(?: [A-Z][a-z]{2,}){0,2}")


@dataclass(frozen=True)
class Country:
    """One country or territory; a list of values holds all that the source names.

    Attributes:
        code: ISO 3166-1 alpha-3, the country's identity.
        name: English name in ASCII.
        values: property to its values, empty when the source has none.
        regions: region, subregion and intermediate region of the UN's M49 standard.
        languages: ISO 639 codes.
        neighbours: alpha-3 codes of the countries it borders.
        provinces: names of its provinces.
    """

    code: str
    name: str
    values: dict[str, tuple[str, ...]]
    regions: tuple[str, str, str]
    languages: tuple[str, ...]
    neighbours: tuple[str, ...]
    provinces: tuple[str, ...]

    def only(self, name: str) -> str | None:
        """Return the value of a property that has just one, else None."""
        found = self.values[name]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Element:
    """One chemical element.

    Attributes:
        number: atomic number.
        symbol: its symbol.
        name: its English name, lower case.
        values: property to its value as text, None when the source has none.
        ions: charges of its ions.
    """

    number: int
    symbol: str
    name: str
    values: dict[str, str | None]
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
    """Return all countries of `countryinfo` by code; what is left out is counted in `dropped`."""
    package = _package("countryinfo")
    best: dict[str, dict[str, Any]] = {}
    for _, raw in sorted(package.CountryInfo.all().items()):
        code = (raw.get("ISO") or {}).get("alpha3")
        name = ascii_form(raw.get("name") or "")
        if not code:
            dropped["country without an ISO code"] += 1
        elif name is None or _UNITED.search(name):
            dropped["country whose name has no plain form"] += 1
        elif code in best and _filled(raw) <= _filled(best[code]):
            dropped["second record of a country"] += 1
        else:
            if code in best:
                dropped["second record of a country"] += 1
            best[code] = raw
    return [_country(code, best[code]) for code in sorted(best)]


def elements() -> list[Element]:
    """Return the elements of `periodictable` by atomic number."""
    package = _package("periodictable")
    found = []
    for element in sorted(package.elements, key=lambda e: e.number):
        if element.number < 1:  # the package counts the neutron as element 0
            continue
        found.append(
            Element(
                number=element.number,
                symbol=element.symbol,
                name=element.name,
                values={
                    "mass": _rounded(element.mass),
                    "density": _rounded(getattr(element, "density", None), 1),
                    "radius": _rounded(getattr(element, "covalent_radius", None), 0, 100),
                    "isotopes": str(len(element.isotopes)) if element.isotopes else None,
                },
                ions=tuple(element.ions),
            )
        )
    return found


def general_sentences(dropped: Counter[str]) -> list[str]:
    """Return the clean sentences among the safe facts of `randfacts`, in its order.

    Clean is: plain ASCII, 8 to 30 words, one line, no stray marks; each once.
    """
    package = _package("randfacts")
    kept: dict[str, None] = {}
    for raw in package.safe_facts:
        text = " ".join(raw.split())
        folded = ascii_form(text)
        if folded is None:
            dropped["general sentence not ASCII"] += 1
            continue
        text = folded if folded[-1] in ".!?\"'" else folded + "."
        if not 8 <= len(text.split()) <= 30:
            dropped["general sentence not of 8 to 30 words"] += 1
        elif not text[0].isalnum() or re.search(r"https?:|[<>{}|\\^~_*]", text):
            dropped["general sentence with stray marks"] += 1
        elif text in kept:
            dropped["general sentence twice"] += 1
        else:
            kept[text] = None
    return list(kept)


def source_of(package: str, origin: str) -> dict[str, str]:
    """Return a manifest's entry for an installed package: name, version, licence, origin."""
    try:
        about = metadata.metadata(package)
    except metadata.PackageNotFoundError as error:
        raise DataError(_not_installed(package)) from error
    # Older metadata has the whole text in "License"; its first paragraph names it.
    stated = [about[key].split("\n\n")[0] for key in _LICENCE_FIELDS if key in about]
    licence = next((text for text in stated if text.strip()), "")
    if not licence:
        classifiers = about.get_all("Classifier") or []
        named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
        licence = ", ".join(named) or "not stated"
    return {
        "name": package,
        "version": about["Version"],
        "licence": " ".join(licence.split()),
        "origin": origin,
    }


COUNTRY_ORIGIN = "installed Python package countryinfo, CountryInfo.all()"
ELEMENT_ORIGIN = "installed Python package periodictable, elements"
SENTENCE_ORIGIN = "installed Python package randfacts, safe_facts"


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(_not_installed(name)) from error


def _not_installed(name: str) -> str:
    return f"the package '{name}', which holds the facts, is not installed; pip install {name}."


def _filled(raw: dict[str, Any]) -> int:
    return sum(bool(value) for value in raw.values())


def _texts(value: Any) -> tuple[str, ...]:
    """Return the values of a field as text; the field may be missing, one value or a list."""
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    return tuple(str(v).strip() for v in values if v is not None and str(v).strip())


def _country(code: str, raw: dict[str, Any]) -> Country:
    name = ascii_form(raw["name"])
    translations = raw.get("translations") or {}
    demonym = (raw.get("demonym") or "").replace("/", ",")
    domains = [d for d in _texts(raw.get("tld")) if d.isascii()]
    return Country(
        code=code,
        name=str(name),
        values={
            "capital": _texts(raw.get("capital")),
            "demonym": _texts(demonym.split(",")),
            "currency": _texts(raw.get("currencies")),
            "calling_code": _texts(raw.get("callingCodes")),
            "internet_domain": tuple(domains),
            "iso_alpha3": (code,),
            "iso_numeric": _texts(raw["ISO"].get("numeric")),
            "german_name": _texts(translations.get("de")),
            "italian_name": _texts(translations.get("it")),
            "time_zone": _texts(raw.get("timezoneNames")),
            "population": _texts(raw.get("population")),
        },
        regions=tuple(raw.get(key) or "" for key in ("region", "subregion", "intermediateregion")),  # type: ignore[arg-type]
        languages=_texts(raw.get("languages")),
        neighbours=_texts(raw.get("borders")),
        provinces=tuple(
            sorted(
                {p for p in map(str.strip, raw.get("provinces") or []) if _PROVINCE.fullmatch(p)}
            )
        ),
    )


def _rounded(value: float | None, digits: int = 0, factor: float = 1) -> str | None:
    if not value:
        return None
    rounded = round(float(value) * factor, digits)
    return f"{rounded:.{digits}f}"
