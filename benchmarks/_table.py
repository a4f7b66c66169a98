"What all benchmarks share: a table, and a line per goal"
import os, sys
from pathlib import Path
from statistics import mean, stdev

def shared(*parts):
    "A folder of the shared data, or a visible skip"
    p = Path(os.environ.get('FGVC_SHARED', '../shared')).joinpath(*parts)
    if p.exists(): return p
    print(f'skipped: {p} is not here (set FGVC_SHARED)')
    sys.exit() # it did not fail

def cub50():
    "50 classes of CUB-200-2011, and the pretrained body that benchmarks train on them, as options of `fine_grained_learner`"
    from fgvc_fast.all import fine_grained_data
    weights = shared('weights', 'mobilenetv2_100.imagenet1k.safetensors')
    return fine_grained_data(shared('data', 'cub50', 'CUB_200_2011')),dict(arch='mobilenetv2_100', weights=weights, stats=([.5]*3, [.5]*3), pad_type='same')

def table(rows):
    "Print a list of dicts as an aligned table"
    cols = list(rows[0])
    cells = [cols] + [[f'{v:.3g}' if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    width = [max(len(r[i]) for r in cells) for i in range(len(cols))]
    for r in cells: print('  '.join(c.ljust(w) if i==0 else c.rjust(w) for i,(c,w) in enumerate(zip(r, width))))

def spread(values, sign=''):
    "Mean ± standard deviation of a sample, as it stands in a table"
    v = [float(o) for o in values]
    return f'{mean(v):{sign}.1f}' + (f' ± {stdev(v):.1f}' if len(v)>1 else '')

def goals(*lines):
    "Print a line per goal (text, measured, holds) and leave with 1 when one falls short"
    for goal,measured,holds in lines: print(f"goal {goal}  measured {measured}  {'holds' if holds else 'falls short'}")
    sys.exit(0 if all(o[2] for o in lines) else 1)
