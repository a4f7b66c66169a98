"Everything about training"
from .accumulate import *
from .add_loss import *
from .decay import *
from .ema import *
from .finite import *
from .frozen import *
from .groups import *
from .l2sp import *
from .parallel import *
from .phases import *
from .picture import *
from .plans import *
from .rates import *
from .run import *
from .snapshot import *
