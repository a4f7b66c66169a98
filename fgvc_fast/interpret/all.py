"Everything about looking at a trained model"
from .probe import *
from .methods import *
from .layers import *
from .cam import *
from .score import *
from .features import *
from .errors import *
from .calibration import * # chkstyle: ignore
from .levels import *
from .retrieval import *
from .mistakes import *
from .projection import *
from .browse import *
