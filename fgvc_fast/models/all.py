"Everything about models"
from .attention import *
from .body import *
from .given import *
from .head import *
from .model import *
from .parts import *
from .pool import *
from .second import *
from .toy import *
