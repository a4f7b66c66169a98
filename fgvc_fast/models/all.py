"Everything about models"
from .body import *
from .given import *
from .head import *
from .model import *
from .pool import *
from .toy import *
