"Telling look-alikes apart: fine-grained visual classification the fast.ai way"
__version__ = "0.0.1"

_homes = dict(fine_grained_data='datasets.catalog', FineGrainedData='data.block', toy_birds='datasets.toy', fine_grained_learner='learner', fine_grained_model='models.model',
    Phase='train.phases', cam='interpret.cam', FineGrainedInterpretation='interpret.errors', load_bundle='bundle', FineGrainedError='core')

def __getattr__(name):
    "The front-door names, imported when asked for (PEP 562)"
    if name not in _homes: raise AttributeError(f"module 'fgvc_fast' has no attribute '{name}'")
    from importlib import import_module
    return getattr(import_module(f'fgvc_fast.{_homes[name]}'), name)

def __dir__(): return [*globals(), *_homes]
