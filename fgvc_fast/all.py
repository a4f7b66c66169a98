"Everything at once, for notebooks: `from fgvc_fast.all import *`"
from fastai.vision.all import *
from .core import FineGrainedError # chkstyle: ignore
from .data.all import *
from .datasets.all import *
from .models.all import *
from .losses import *
from .embed import *
from .metrics import *
from .levels import *
from .answers import *
from .augment.all import *
from .train.all import *
from .learner import *
from .interpret.all import *
from .robust.all import *
from .bundle import *
from .save import *
from .track import *
from .study.all import *
from .studies import *
