"Tables of runs"
from .mix_report import *
from .names import *
from .show import *
from .table import *
