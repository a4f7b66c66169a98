"Everything about models"
from .attention import *
from .body import *
from .head import *
from .model import *
from .pool import *
from .toy import *
