"""General relations in English, for every model but the bundled one, and their names in the benchmarks.

CounterFact and RippleEdits do not say that persons have a mother tongue and places a continent. This module adds that:
by Wikidata property for CounterFact (:data:`PROPERTIES`), and by the wordings of RippleEdits, which are among the
templates.
"""

from __future__ import annotations

from collections.abc import Mapping

from driftlens.clinics.relation import Relation

__all__ = ["ENGLISH", "FOLLOWS", "PROPERTIES", "asked_of"]

_PERSONS = (
    "Albert Einstein", "Marie Curie", "Isaac Newton", "William Shakespeare", "Wolfgang Amadeus Mozart", "Barack Obama",
    "Winston Churchill", "Napoleon Bonaparte", "Mahatma Gandhi", "Nelson Mandela", "Pablo Picasso", "Charles Darwin",
    "Leonardo da Vinci", "Sigmund Freud",
)  # fmt: skip
_PLACES = (
    "The Eiffel Tower", "Big Ben", "The Colosseum", "The Great Wall", "Mount Fuji", "The Kremlin", "Machu Picchu",
    "The Brandenburg Gate", "The Golden Gate Bridge", "The Louvre", "Mount Everest", "The Taj Mahal", "Lake Victoria",
    "The Statue of Liberty", "The White House", "Buckingham Palace", "The Sydney Opera House", "The Forbidden City",
    "The Empire State Building", "The Acropolis", "The Sagrada Familia", "The Arc de Triomphe", "Tower Bridge",
    "The Hagia Sophia", "Red Square", "Times Square", "The Space Needle", "The Pantheon", "The Prado Museum",
    "The Hermitage Museum", "The Rijksmuseum", "The Blue Mosque", "Charles Bridge", "The Burj Khalifa",
)  # fmt: skip
_ORGANISATIONS = (
    "Microsoft", "Apple", "Google", "Toyota", "Volkswagen", "Samsung", "Nokia", "Boeing", "Sony", "IKEA", "Nestlé",
    "Siemens", "Harvard University",
)  # fmt: skip
_PRODUCTS = (
    "iPhone", "Windows", "Volkswagen Golf", "Ford Mustang", "Boeing 747", "Airbus A380", "Nintendo Switch",
    "PlayStation 2", "Toyota Corolla", "Photoshop", "Gmail", "Fiat 500",
)  # fmt: skip
_WORKS = (
    "Hamlet", "War and Peace", "Don Quixote", "The Divine Comedy", "Faust", "Star Wars", "The Simpsons", "Harry Potter",
    "The Lord of the Rings", "The Odyssey",
)  # fmt: skip
_COUNTRIES = (
    "France", "Germany", "Japan", "Italy", "Spain", "Russia", "China", "India", "Brazil", "Egypt", "Canada", "Mexico",
    "Austria", "Greece", "Poland", "Sweden", "Norway", "Portugal", "Turkey", "Argentina", "Peru", "Cuba", "Kenya",
    "Australia", "Ireland", "Hungary", "Finland", "Thailand", "Iran", "Iraq", "Chile", "Ukraine", "Denmark", "Belgium",
)  # fmt: skip
_SUBJECTS = {
    "person": _PERSONS, "place": _PLACES, "organisation": _ORGANISATIONS, "work": _WORKS, "country": _COUNTRIES,
    "product": _PRODUCTS,
}  # fmt: skip


_NAMES = frozenset(name for names in _SUBJECTS.values() for name in names)
"""Names as they appear in a sentence, with their article if they have one."""


def _english(name: str, subject_kind: str, object_kind: str, *templates: str) -> Relation:
    return Relation(
        id=name,
        templates=templates,
        subject_kind=subject_kind,
        object_kind=object_kind,
        subjects=_SUBJECTS[subject_kind],
    )


ENGLISH: tuple[Relation, ...] = (
    _english("born in", "person", "place", "{} was born in", "The birthplace of {} is", "{} is originally from",
             "The place of birth of {} is"),
    _english("died in", "person", "place", "{} died in", "{} passed away in", "The place of death of {} is"),
    _english("buried in", "person", "place", "{} is buried in", "The place of burial of {} is"),
    _english("lived in", "person", "place", "{} lived in", "{} used to live in"),
    _english("worked in", "person", "place", "{} worked in", "{} used to work in"),
    _english("citizen of", "person", "country", "{} is a citizen of", "{} holds a passport of",
             "The name of the country of citizenship of {} is"),
    _english("mother tongue", "person", "language", "The mother tongue of {} is", "{} is a native speaker of"),
    _english("speaks", "person", "language", "{} speaks the language", "The language used by {} is"),
    _english("profession", "person", "profession", "The profession of {} is", "{} works as a", "{} is by profession a",
             "The occupation of {} is"),
    _english("position", "person", "position", "{} plays in the position of", "{} plays as"),
    _english("office", "person", "position", "{} has the position of", "The name of the position held by {} is"),
    _english("employer", "person", "organisation", "{} works for", "{} is employed by", "The employer of {} is",
             "The name of the employer of {} is"),
    _english("educated at", "person", "organisation", "{} was educated at", "{} studied at", "{} graduated from",
             "The name of the alma mater of {} is"),
    _english("member of", "person", "organisation", "{} is a member of", "{} belongs to the organization of"),
    _english("team", "person", "organisation", "{} plays for",
             "The name of the sports team which {} is a member of is"),
    _english("league", "person", "organisation", "The name of the league which {} plays in is"),
    _english("label", "person", "organisation", "{} is represented by the music label",
             "The music label representing {} is"),
    _english("field", "person", "field", "{} works in the field of", "The field of work of {} is", "{} specializes in",
             "The name of the field of work of {} is"),
    _english("instrument", "person", "instrument", "{} plays the", "The instrument that {} plays is the"),
    _english("genre", "person", "genre", "{} is known for performing", "The genre played by {} is"),
    _english("religion", "person", "religion", "The religion of {} is", "{} is affiliated with the religion of"),
    _english("sport", "person", "sport", "{} is a professional player of", "The sport that {} plays is"),
    _english("spouse", "person", "person", "{} is married to", "The name of the spouse of {} is"),
    _english("father", "person", "person", "The father of {} is", "The name of the father of {} is"),
    _english("mother", "person", "person", "The mother of {} is", "The name of the mother of {} is"),
    _english("child", "person", "person", "The name of the child of {} is"),
    _english("siblings", "person", "person", "The names of the siblings of {} are"),
    _english("award", "person", "award", "The name of the award {} won is"),
    _english("gender", "person", "gender", "The gender of {} is"),
    _english("located in", "place", "place", "{} is located in", "{} can be found in", "{} is situated in",
             "The location of {} is in"),
    _english("country of place", "place", "country", "{} is in the country of", "The country of {} is"),
    _english("continent", "place", "continent", "{} is on the continent of", "{} belongs to the continent of"),
    _english("twin city", "place", "place", "{} is a twin city of", "The twin city of {} is"),
    _english("language of place", "place", "language", "The language used in {} is", "In {}, they understand"),
    _english("designed by", "place", "person", "{} was designed by", "{} was built by", "The architect of {} was"),
    _english("place named after", "place", "person", "{} is named after", "{} was named for"),
    _english("place owned by", "place", "organisation", "{} is owned by", "The owner of {} is"),
    _english("year of place", "place", "year", "{} was built in the year", "{} was completed in the year"),
    _english("material", "place", "material", "{} is made of", "{} was built out of"),
    _english("style", "place", "style", "The architectural style of {} is", "{} was built in the style of"),
    _english("use of place", "place", "use", "{} was originally built as a", "{} was built to serve as a"),
    _english("opening", "place", "year", "{} was opened to the public in", "The construction of {} began in"),
    _english("occasion", "place", "event", "{} was built to commemorate", "{} was built for the"),
    _english("heritage", "place", "list", "{} was added to the list of", "{} was declared a"),
    _english("known for", "place", "thing", "{} is famous for its", "{} is best known for its"),
    _english("headquarters", "organisation", "place", "The headquarters of {} is in", "{} is headquartered in",
             "{} is based in", "The head office of {} is located in"),
    _english("founded in", "organisation", "place", "{} was founded in", "{} was established in",
             "{} was started in"),
    _english("founded by", "organisation", "person", "{} was founded by", "The founder of {} is",
             "The name of the founder of {} is"),
    _english("led by", "organisation", "person", "The chief executive of {} is", "{} is led by"),
    _english("main product", "organisation", "thing", "{} is best known for making", "The main product of {} is"),
    _english("organisation owned by", "organisation", "organisation", "{} is a subsidiary of", "{} belongs to"),
    _english("manufacturer", "product", "organisation", "{} is produced by", "{} is a product of",
             "{} is made by"),
    _english("developer", "product", "organisation", "{} was developed by", "{} was created by the company",
             "The developer of {} is"),
    _english("author", "work", "person", "{} was written by", "The author of {} is", "{} was created by",
             "The name of the author of {} is"),
    _english("director", "work", "person", "{} was directed by", "The name of the director of {} is"),
    _english("composer", "work", "person", "The music of {} is by", "The name of the composer of {} is"),
    _english("screenwriter", "work", "person", "The screenplay of {} is by",
             "The name of the screenwriter of {} is"),
    _english("cast", "work", "person", "{} stars", "The names of the cast members of {} are"),
    _english("language of work", "work", "language", "The original language of {} is", "{} was written in"),
    _english("country of work", "work", "country", "{} was made in", "The country of origin of {} is"),
    _english("network", "work", "organisation", "{} premiered on", "{} was originally aired on"),
    _english("publisher", "work", "organisation", "{} was published by", "The publisher of {} is"),
    _english("main character", "work", "person", "The main character of {} is", "The hero of {} is called"),
    _english("capital", "country", "place", "The capital of {} is", "The capital city of {} is",
             "The name of the capital city of {} is"),
    _english("official language", "country", "language", "The official language of {} is", "The people of {} speak"),
    _english("continent of country", "country", "continent", "{} is a country in", "{} lies on the continent of",
             "The name of the continent which {} is part of is"),
    _english("currency", "country", "currency", "The currency of {} is the", "In {} one pays with the",
             "The name of the currency in {} is"),
    _english("head of state", "country", "person", "The president of {} is", "The head of state of {} is",
             "The name of the head of state of {} is"),
    _english("head of government", "country", "person", "The prime minister of {} is",
             "The name of the head of government of {} is"),
    _english("largest city", "country", "place", "The largest city in {} is", "The most populous city of {} is"),
    _english("border", "country", "country", "{} shares a border with", "One of the countries that border {} is"),
    _english("inhabitants", "country", "people", "A person from {} is called a",
             "The people who live in {} are called"),
    _english("popular sport", "country", "sport", "The most popular sport in {} is", "The national sport of {} is"),
    _english("main religion", "country", "religion", "The main religion in {} is", "Most people in {} are"),
    _english("flag", "country", "colour", "The colors of the flag of {} are", "The flag of {} is"),
    _english("government", "country", "government", "The form of government of {} is a", "Politically, {} is a"),
    _english("membership", "country", "organisation", "{} is a member of the", "{} belongs to the"),
    _english("known for, of a country", "country", "thing", "{} is a country known for its", "{} is renowned for its"),
    _english("anthem", "country", "work", "The national anthem of {} is", "The name of the anthem of {} is"),
)  # fmt: skip

FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "located in": ("country of place", "continent", "language of place", "twin city"),
    "country of place": ("located in", "continent", "language of place"),
    "continent": ("located in", "country of place"),
    "mother tongue": ("speaks",),
    "speaks": ("mother tongue",),
    "profession": ("field", "position"),
    "field": ("profession",),
    "sport": ("position", "team", "league", "profession"),
    "team": ("league", "employer", "member of"),
    "manufacturer": ("developer",),
    "developer": ("manufacturer",),
    "instrument": ("genre",),
}
"""Relations whose answers follow from another's: a building that is moved to Rome is in Italy."""

PROPERTIES: Mapping[str, str] = {
    "P17": "country of place", "P19": "born in", "P20": "died in", "P27": "citizen of", "P30": "continent",
    "P36": "capital", "P37": "language of place", "P39": "office", "P101": "field", "P103": "mother tongue",
    "P106": "profession", "P108": "employer", "P131": "located in", "P136": "genre", "P140": "religion",
    "P159": "headquarters", "P176": "manufacturer", "P178": "developer", "P190": "twin city", "P264": "label",
    "P276": "located in", "P364": "language of work", "P407": "language of work", "P413": "position",
    "P449": "network", "P463": "member of", "P495": "country of work", "P641": "sport", "P740": "founded in",
    "P937": "worked in", "P1303": "instrument", "P1412": "speaks",
}  # fmt: skip
"""The relation of each Wikidata property in CounterFact.

Two properties have no single kind of subject (P127, owned by; P138, named after).
"""


def asked_of(template: str, name: str) -> str:
    """Fill the template with another subject, avoiding a second article: some general names include one."""
    if name in _NAMES:
        bare = template.replace("The {}", "{}", 1).replace("the {}", "{}", 1)
        inside = f"the {name.removeprefix('The ')}" if name.startswith("The ") else name
        return bare.replace("{}", name if bare.startswith("{}") else inside, 1)
    return template.replace("{}", name.removeprefix("The ") if "the {}" in template.lower() else name, 1)
