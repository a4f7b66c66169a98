"What all benchmarks share: a table, and a line per goal"
import numpy as np, os, sys
from pathlib import Path

def shared(*parts):
    "A folder of the shared data, or a visible skip"
    p = Path(os.environ.get('FGVC_SHARED', '../shared')).joinpath(*parts)
    if not p.exists(): sys.exit(f'skipped: {p} is not here (set FGVC_SHARED)')
    return p

def table(rows):
    "Print a list of dicts as an aligned table"
    cols = list(rows[0])
    cells = [cols] + [[f'{v:.3g}' if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    width = [max(len(r[i]) for r in cells) for i in range(len(cols))]
    for r in cells: print('  '.join(c.ljust(w) if i==0 else c.rjust(w) for i,(c,w) in enumerate(zip(r, width))))

def spread(values, sign=''):
    "Mean ± standard deviation of a sample, as it stands in a table"
    v = np.asarray(values)
    return f'{v.mean():{sign}.1f}' + (f' ± {v.std(ddof=1):.1f}' if len(v)>1 else '')

def goals(*lines):
    "Print a line per goal (text, measured, holds) and leave with 1 when one falls short"
    for goal,measured,holds in lines: print(f"goal {goal}  measured {measured}  {'holds' if holds else 'falls short'}")
    sys.exit(0 if all(o[2] for o in lines) else 1)
