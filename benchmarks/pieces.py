"""Where does the gain of `benchmarks/cub50.py --budget` come from? From fastai's `fine_tune(4)` to our defaults, one piece at a time, in the same time

    python benchmarks/pieces.py --seeds 3

Measured on a validation split of 30 % of train; the test split is not touched. The first row sets the time, later rows train for as many epochs as fit into it.
"""
import argparse, numpy as np, sys
from cub50 import fastai, fit_in, loaders, ours, trained, valid, with_head
from fastai.vision.all import accuracy
from fgvc_fast.all import fine_grained_learner
from fgvc_fast.models.model import NormalizeInput
from torch import nn
from _table import cub50, spread, table

def our_loaders(data, body, epochs, size):
    "Our loaders (cached pictures, our crops and flips), under fastai's model and training"
    learn = with_head(loaders(data, size), body, normalize=False)
    learn.model[0] = nn.Sequential(NormalizeInput(*body['stats']), learn.model[0]).to(learn.dls.device) # fastai's loaders normalise
    yield learn
    learn.fine_tune(epochs-1)
    yield learn

def our_model(data, body, epochs, size):
    "Our loaders and our model, trained as fastai does"
    learn = fine_grained_learner(loaders(data, size), **body, metrics=accuracy)
    yield learn
    learn.fine_tune(epochs-1)
    yield learn

def row(name, make, data, body, args, epochs):
    "(a row of the table, seconds)"
    res = []
    for seed in range(args.seeds):
        learn,secs = trained(make, seed, data.split(valid=.3, seed=seed), body, epochs=epochs, size=args.size)
        res.append((valid(learn), secs))
        print(f'{name}, seed {seed}: {res[-1][0]:.1f} %, {secs:.0f} s', file=sys.stderr, flush=True)
    v,s = np.array(res).T
    return dict(piece=name, valid_top1=spread(v), epochs=epochs, seconds=f'{s.mean():.0f}', seeds=args.seeds),s.mean()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--seeds', type=int, default=3)
    args = p.parse_args()
    data,body = cub50()
    first,budget = row("fastai's defaults: fine_tune(4)", fastai, data, body, args, 5)
    rows = [first, row('our loaders, as many epochs', our_loaders, data, body, args, 5)[0]]
    for name,make in (('our loaders, in the same time', our_loaders), ('and our model', our_model), ('and our plan: our defaults', ours)):
        rows.append(row(name, make, data, body, args, fit_in(make, budget, data.split(valid=.3, seed=0), body, size=args.size))[0])
    table(rows)

if __name__=='__main__': main()
