"Tables of runs"
from .names import *
from .show import *
from .table import *
