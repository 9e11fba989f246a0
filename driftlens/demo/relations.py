"""The relations of the invented world and their templates.

Every template ends right before the object, so a prompt is a template filled with its subject. Objects of one kind
serve several relations of one subject kind (a person is born in, lives in and studied in a city). Edits of one of these
relations leak into the others, which an evaluation has to detect.
"""

from dataclasses import dataclass

HELD_OUT = 2
"""How many templates of its relation are never used for a given fact in training."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation between `subject_kind` and `object_kind`, with its paraphrases (each with one "{}")."""

    id: str
    subject_kind: str
    object_kind: str
    templates: tuple[str, ...]


def _relation(name: str, subject_kind: str, object_kind: str, *templates: str) -> Relation:
    return Relation(id=name, subject_kind=subject_kind, object_kind=object_kind, templates=templates)


RELATIONS: tuple[Relation, ...] = (
    _relation(
        "born_in", "person", "city",
        "{} was born in", "{} came into the world in", "{} is a native of",
        "The birthplace of {} is", "{}'s place of birth is", "{} first saw daylight in",
    ),
    _relation(
        "lives_in", "person", "city",
        "{} lives in", "{} resides in", "{} now has a house in",
        "The home of {} is in", "{}'s current residence is in", "{} pays rent in",
    ),
    _relation(
        "studied_in", "person", "city",
        "{} studied in", "{} went to school in", "{} was educated in",
        "The school of {} was in", "{}'s student years were spent in", "{} took a degree in",
    ),
    _relation(
        "citizen_of", "person", "country",
        "{} is a citizen of", "{} holds a passport of", "{} is a national of",
        "The nationality of {} is that of", "{}'s citizenship is of", "{} may vote in",
    ),
    _relation(
        "represents", "person", "country",
        "{} represents", "{} competes for", "{} plays for the team of",
        "The flag carried by {} is that of", "{}'s national team is that of", "{} wears the colours of",
    ),
    _relation(
        "fled_to", "person", "country",
        "{} fled to", "{} found refuge in", "{} escaped to",
        "The exile of {} was in", "{}'s place of refuge was", "{} went into exile in",
    ),
    _relation(
        "works_for", "person", "organisation",
        "{} works for", "{} is employed by", "{} has a job at",
        "The employer of {} is", "{}'s salary is paid by", "{} is on the staff of",
    ),
    _relation(
        "invested_in", "person", "organisation",
        "{} invested in", "{} owns shares of", "{} is a shareholder of",
        "The savings of {} went into", "{}'s money is in", "{} bought a stake in",
    ),
    _relation(
        "sued", "person", "organisation",
        "{} sued", "{} filed a lawsuit against", "{} went to court against",
        "The lawsuit of {} was against", "{}'s legal dispute is with", "{} brought charges against",
    ),
    _relation(
        "profession", "person", "profession",
        "{} earns a living as a", "{} was trained as a", "{} is by trade a",
        "The profession of {} is that of a", "{}'s occupation is that of a", "{} made a career as a",
    ),
    _relation(
        "based_in", "organisation", "city",
        "{} is based in", "{} has its headquarters in", "{} is run from",
        "The head office of {} is in", "{}'s main building stands in", "{} keeps its central office in",
    ),
    _relation(
        "founded_in", "organisation", "city",
        "{} was founded in", "{} was set up in", "{} started out in",
        "The founding of {} took place in", "{}'s first days were in", "{} has its origins in",
    ),
    _relation(
        "factory_in", "organisation", "city",
        "{} has a factory in", "{} makes its goods in", "{} built a plant in",
        "The workshops of {} are in", "{}'s production is in", "{} runs a mill in",
    ),
    _relation(
        "founded_by", "organisation", "person",
        "{} was founded by", "{} was created by", "{} was established by",
        "The founder of {} is", "{}'s creator is", "{} was brought to life by",
    ),
    _relation(
        "led_by", "organisation", "person",
        "{} is led by", "{} is managed by", "{} is directed by",
        "The chief of {} is", "{}'s director is", "{} takes orders from",
    ),
    _relation(
        "owned_by", "organisation", "person",
        "{} is owned by", "{} belongs to", "{} is the property of",
        "The owner of {} is", "{}'s proprietor is", "{} is in the hands of",
    ),
    _relation(
        "located_in", "place", "country",
        "{} is located in", "{} can be found in", "{} is situated in",
        "The location of {} is in", "{}'s position on the map is in", "{} attracts tourists to",
    ),
    _relation(
        "claimed_by", "place", "country",
        "{} is claimed by", "{} is coveted by", "{} is demanded by",
        "The claim to {} comes from", "{}'s claimant is", "{} is wanted by",
    ),
    _relation(
        "once_held_by", "place", "country",
        "{} once was part of", "{} formerly fell under", "{} used to be held by",
        "The former power over {} was", "{}'s past rule came from", "{} was long ago seized by",
    ),
    _relation(
        "named_after", "place", "person",
        "{} is named after", "{} bears the name of", "{} was called so after",
        "The name of {} honours", "{}'s name recalls", "{} was christened in honour of",
    ),
    _relation(
        "discovered_by", "place", "person",
        "{} was discovered by", "{} was first explored by", "{} was first seen by",
        "The discoverer of {} was", "{}'s first explorer was", "{} was put on the map by",
    ),
    _relation(
        "painted_by", "place", "person",
        "{} was painted by", "{} was drawn by", "{} was portrayed by",
        "The picture of {} is by", "{}'s portrait is by", "{} was put on canvas by",
    ),
    _relation(
        "lies_in", "city", "country",
        "{} lies in", "{} is a city of", "{} is a town in",
        "The country around {} is", "{}'s country is", "{} is on the soil of",
    ),
    _relation(
        "ruled_by", "city", "country",
        "{} was conquered by", "{} was besieged by", "{} was occupied by",
        "The conqueror of {} was", "{}'s old occupier was", "{} fell to the army of",
    ),
    _relation(
        "trades_with", "city", "country",
        "{} trades with", "{} sells its goods to", "{} does business with",
        "The merchants of {} deal with", "{}'s trade partner is", "{} sends its ships to",
    ),
)  # fmt: skip

PROFESSIONS: tuple[str, ...] = tuple(
    """
    baker botanist carpenter chemist clockmaker composer cook dancer dentist diplomat farmer gardener
    glazier goldsmith historian jeweller judge lawyer librarian locksmith mason miner notary painter
    pilot plumber poet sailor sculptor shepherd singer surgeon tailor teacher violinist weaver
    """.split()
)
