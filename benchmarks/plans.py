"""Which plan of phases? Five epochs on 50 classes of CUB at 128 px, measured on a validation split of 30 % of train; the test split is not touched

    python benchmarks/plans.py --seeds 2
"""
import argparse, numpy as np, sys, time
from fastai.vision.all import accuracy, set_seed
from fgvc_fast.all import Phase, fine_grained_learner
from fgvc_fast.train.phases import default_plan
from torch import nn
from _table import cub50, goals, spread, table

def body(lr, ratio, keep): return [Phase('head', 1, lr=1e-2), Phase('all', 4, lr=lr, ratio=ratio, freeze_bn=keep)]

plans = {'head alone': [Phase('head', 5, lr=1e-2)],
    'head, all at 1e-3, ratio 10': body(1e-3, 10, False),
    'the same, statistics kept (the default)': default_plan(5),
    'the same, rows of the head not scaled': default_plan(5),
    'kept, all at 2e-3, ratio 10': body(2e-3, 10, True),
    'kept, all at 2e-4, ratio 3': body(2e-4, 3, True),
    'kept, all at 5e-4, ratio 3': body(5e-4, 3, True)}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=2)
    p.add_argument('--size', type=int, default=128)
    args = p.parse_args()
    data,pretrained = cub50()
    rows,means = [],{}
    for name,plan in plans.items():
        accs,start = [],time.perf_counter()
        for seed in range(args.seeds):
            set_seed(seed)
            dls = data.split(valid=.3, seed=seed).dls(size=args.size)
            learn = fine_grained_learner(dls, **pretrained, metrics=accuracy)
            if 'not scaled' in name: learn.model.head.norm = nn.BatchNorm1d(learn.model.pool.nf)
            with learn.no_bar(), learn.no_logging(): learn.fit_phases(plan)
            accs.append(100*learn.phase_log.accuracy.iloc[-1])
        rows.append({'plan': name, 'valid accuracy %': spread(accs), 'seconds': round((time.perf_counter()-start)/args.seeds), 'seeds': args.seeds})
        means[name] = np.mean(accs)
        print(rows[-1], file=sys.stderr, flush=True)
    table(rows)
    default,best = [v for k,v in means.items() if 'default' in k][0],max(means.values())
    goals(('the default plan is the best of these, or as near as 450 pictures can tell (4.5 points)', f'{best-default:.1f} points below', best-default<=4.5))

if __name__=='__main__': main()
