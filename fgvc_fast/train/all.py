"Everything about training"
from .accumulate import *
from .add_loss import *
from .aux_loss import *
from .cached_features import *
from .checkpoint import *
from .distributed import *
from .ema import *
from .finite import *
from .groups import *
from .l2sp import *
from .lr_find import *
from .phases import *
from .plans import *
from .plot import *
from .precision import *
from .runner import *
from .weight_decay import *
