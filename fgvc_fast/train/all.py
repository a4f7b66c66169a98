"Everything about training"
from .groups import *
from .decay import *
from .ema import *
from .l2sp import *
from .accumulate import *
from .phases import *
from .snapshot import *
