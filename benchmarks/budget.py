"""What to spend a fixed time on? 50 classes of CUB, the time of `benchmarks/cub50.py --budget`; measured on a validation split of 30 % of train, the test split is not touched

    python benchmarks/budget.py --seeds 2

Each row is the default with one thing changed, and as many epochs as make it last about as long; `seconds` says how well that was met. The pictures are decoded before the clock starts.
"""
import argparse, numpy as np, sys, time
from fastai.vision.all import CrossEntropyLossFlat, accuracy, set_seed
from fgvc_fast.all import EMA, Cutout, Mix, Phase, fine_grained_learner
from fgvc_fast.train.phases import default_plan
from functools import partial
from _table import cub50, spread, table

def once(epochs, n=10): return [Phase('head', n, lr=1e-2, cached_views=0), Phase('all', epochs, lr=1e-3, ratio=10., freeze_bn=True)]

# name: (size, plan, options of the learner, of the loaders)
settings = {'the default, 11 epochs': (128, 11, {}, {}),
    'the default, 6 epochs': (128, 6, {}, {}),
    '160 px, 7 epochs': (160, 7, {}, {}),
    '96 px, then 160 px': (96, [Phase('head', 1, lr=1e-2), Phase('all', 6, lr=1e-3, ratio=10., freeze_bn=True), Phase('all', 3, lr=5e-4, ratio=10., freeze_bn=True, size=160)], {}, {}),
    'head on features of one pass, 10 epochs, then 10': (128, once(10), {}, {}),
    'renewed statistics': (128, [Phase('head', 2, lr=1e-2), Phase('all', 9, lr=1e-3, ratio=10.)], {}, {}),
    'rate 2e-3': (128, default_plan(11, lr=2e-2), {}, {}),
    'rate 5e-4': (128, default_plan(11, lr=5e-3), {}, {}),
    'label smoothing .1': (128, 11, dict(loss_func=CrossEntropyLossFlat(label_smoothing=.1)), {}),
    'mixup .2': (128, 11, dict(cbs=partial(Mix, mixup=.2)), {}),
    'cutmix 1': (128, 11, dict(cbs=partial(Mix, cutmix=1.)), {}),
    'cutout': (128, 11, dict(cbs=Cutout), {}),
    'averaged weights': (128, 11, dict(cbs=EMA), {}),
    'dropout .3': (128, 11, dict(drop=.3), {}),
    "aug='standard'": (128, 11, {}, dict(aug='standard')),
    "crop='box'": (128, 11, {}, dict(crop='box')),
    'batches of 16': (128, 11, {}, dict(bs=16))}

def run(data, body, name, seed):
    "(validation accuracy %, seconds)"
    size,plan,learner,dls = settings[name]
    set_seed(seed)
    loaders = data.split(valid=.3, seed=seed).dls(size=size, **dls)
    learner = {k: v() if k=='cbs' else v for k,v in learner.items()}
    learn = fine_grained_learner(loaders, **body, metrics=accuracy, **learner)
    for dl in loaders.loaders: [None for _ in dl]
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(plan)
    return 100*learn.phase_log.accuracy.iloc[-1],time.perf_counter()-start

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=2)
    p.add_argument('--only', nargs='+', help='rows whose names hold one of these')
    args = p.parse_args()
    data,body = cub50()
    rows = []
    for name in settings:
        if args.only and not any(o in name for o in args.only): continue
        res = np.array([run(data, body, name, seed) for seed in range(args.seeds)])
        rows.append({'one thing changed': name, 'valid accuracy %': spread(res[:,0]), 'seconds': f'{res[:,1].mean():.0f}', 'seeds': args.seeds})
        print(rows[-1], file=sys.stderr, flush=True)
    table(rows)

if __name__=='__main__': main()
