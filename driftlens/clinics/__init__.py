"""The edit clinic: test what an edit of *this* fact does to *this* model before anyone ships it.

1. :mod:`~driftlens.clinics.knowledge`: does the model know the fact?  If not, nothing is edited.
2. :mod:`~driftlens.clinics.probes`: prompts whose answers should not change (and paraphrases, whose answers should),
   from templates, the model's own generations and the user. Half of them are used to choose γ, half are held out.
3. :mod:`~driftlens.clinics.path`: the edit without SADR and with SADR at several γ, and the choice among them.
4. :mod:`~driftlens.clinics.verdict`: ship, ship with care, do not ship, cannot judge.
"""

from driftlens.clinics.clinic import clinic
from driftlens.clinics.probes import UserProbe
from driftlens.clinics.report import ClinicReport

__all__ = ["ClinicReport", "UserProbe", "clinic"]
