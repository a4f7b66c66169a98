"""Accuracy against minutes: fastai's `fine_tune` at its best rate, scikit-learn on frozen features, `fit_phases` and `fit_minutes`, on 50 classes of CUB

    python benchmarks/curve.py --seeds 3 --draw nbs/images/minutes.png

Each point is a training of its own, in a process of its own, with a cache that is new; all that came out goes to `--log`, and what stands there is not run again. The test split is read once by each, at the end. fastai's rate is the best at 128 px of the grid of `cub50.py --budget`, by validation; its epochs are as many as fit by the time of three and of two.
"""
import argparse, json, numpy as np, sys
from pathlib import Path
from _table import spread, table
from minutes import asked

rows = dict(fine_tune='fastai fine_tune', fit_phases='fit_phases', fit_minutes='fit_minutes')

def draw(got, to):
    "All points, and a line through the means of each row"
    import matplotlib.pyplot as plt
    fig,ax = plt.subplots(figsize=(6,3.4), layout='constrained')
    for (kind,name),c in zip(rows.items(), ('.55','C0','C1')):
        mine = [o for o in got if o['row']==kind]
        ax.plot([o['seconds']/60 for o in mine], [100*o['top1'] for o in mine], 'o', color=c, ms=3, alpha=.5)
        at = [[o for o in mine if o['minutes']==m] for m in sorted({o['minutes'] for o in mine})]
        ax.plot([np.mean([o['seconds']/60 for o in os]) for os in at], [np.mean([100*o['top1'] for o in os]) for os in at], '-', color=c, label=name)
    for o in got:
        if o['row']=='probe': ax.plot(o['seconds']/60, 100*o['top1'], '*', color='C2', ms=10, label='logistic regression on frozen features')
    ax.set(xscale='log', xlabel='minutes on two cores', ylabel='test top-1, %')
    ticks = (.25,.5,1,2,4,8)
    ax.set_xticks(ticks, [f'{o:g}' for o in ticks]), ax.set_xticks([], minor=True)
    ax.legend(frameon=False, fontsize=9)
    fig.savefig(to, dpi=150)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, nargs='+', default=[.25,.5,1,2,4,8])
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--log', type=Path, default=Path('curve.jsonl'))
    p.add_argument('--draw', type=Path)
    args = p.parse_args()
    got = [json.loads(o) for o in args.log.read_text().splitlines()] if args.log.exists() else []
    wanted = [('probe', 0, 0)]+[(k, m, seed) for seed in range(args.seeds) for m in args.minutes for k in rows]
    for kind,m,seed in wanted:
        if any((o['row'],o['minutes'],o['seed'])==(kind,m,seed) for o in got): continue
        top1,secs,what = asked('cub50', kind, seed, 60*m)
        got.append(dict(row=kind, minutes=m, seed=seed, top1=top1, seconds=secs, what=what))
        with args.log.open('a') as f: f.write(json.dumps(got[-1])+'\n')
        print(got[-1], file=sys.stderr, flush=True)
    lines = []
    for m in args.minutes:
        at = {k: [o for o in got if o['row']==k and o['minutes']==m] for k in rows}
        lines.append({'minutes': f'{m:g}', **{rows[k]: spread([100*o['top1'] for o in v]) for k,v in at.items()}, 'kept by fit_minutes': '; '.join(sorted({o['what'] for o in at['fit_minutes']}))})
    table(lines)
    one = next(o for o in got if o['row']=='probe')
    print(f"logistic regression on frozen features: {100*one['top1']:.1f} % in {one['seconds']:.0f} s")
    if args.draw: draw(got, args.draw)

if __name__=='__main__': main()
