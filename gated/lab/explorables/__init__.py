"""Interactive figures that work in the built page with no kernel and no network, and in a live kernel as widgets.

Each figure is a pair: ``<name>.py`` draws the picture and computes its numbers with the library,
``<name>.js`` moves the picture under the reader's hands and computes the same numbers. The two are tested
equal in a real browser.
"""

from gated.lab.explorables.barrier import BarrierExplorable
from gated.lab.explorables.board import BoardExplorable
from gated.lab.explorables.cells import CellsExplorable
from gated.lab.explorables.consensus import ConsensusExplorable
from gated.lab.explorables.decay import DecayExplorable
from gated.lab.explorables.decay_weights import decay_matrix, max_exponent
from gated.lab.explorables.dial import DialExplorable
from gated.lab.explorables.exits import ExitsExplorable
from gated.lab.explorables.explorable import Explorable
from gated.lab.explorables.gates import GateExplorable
from gated.lab.explorables.offload import OffloadExplorable
from gated.lab.explorables.particle import ParticleExplorable
from gated.lab.explorables.plane import PlaneExplorable
from gated.lab.explorables.ray import RayExplorable
from gated.lab.explorables.response import ResponseExplorable
from gated.lab.explorables.router import RouterExplorable

__all__ = [
    "BarrierExplorable", "BoardExplorable", "CellsExplorable", "ConsensusExplorable", "DecayExplorable",
    "DialExplorable", "ExitsExplorable",
    "Explorable", "GateExplorable", "OffloadExplorable", "ParticleExplorable", "PlaneExplorable",
    "RayExplorable", "ResponseExplorable", "RouterExplorable",
    "decay_matrix", "max_exponent",
]  # fmt: skip
