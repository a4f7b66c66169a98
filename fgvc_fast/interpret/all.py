"Everything about looking at a trained model"
from .methods import *
from .layers import *
from .cam import *
from .score import *
from .features import *
from .errors import *
from .calibrate import * # chkstyle: ignore
from .levels import *
from .retrieve import *
from .why import *
from .embed import *
from .walk import *
