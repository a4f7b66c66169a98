"Everything about training"
from .add_loss import *
from .accumulate import *
from .decay import *
from .ema import *
from .frozen import *
from .groups import *
from .l2sp import *
from .phases import *
from .plans import *
from .rates import *
from .snapshot import *
