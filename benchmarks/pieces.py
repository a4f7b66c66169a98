"""Where does the gain of `benchmarks/cub50.py --budget` come from? From fastai's `fine_tune(4)` to our defaults, one piece at a time, in the same time

    python benchmarks/pieces.py --seeds 3

Measured on a validation split of 30 % of train; the test split is not touched. The first row sets the time, later rows train for as many epochs as fit into it.
"""
import argparse, numpy as np, sys
from cub50 import arch, fastai, fit_in, loaders, ours, stats, trained, valid
from fastai.vision.all import accuracy, vision_learner
from fgvc_fast.all import fine_grained_data, fine_grained_learner
from fgvc_fast.models.model import Normalise
from safetensors.torch import load_file
from torch import nn
from _table import shared, spread, table

def our_loaders(data, weights, epochs, size):
    "Our loaders (cached pictures, our crops and flips), under fastai's model and training"
    learn = vision_learner(loaders(data, size), arch, pretrained=False, normalize=False, metrics=accuracy, pad_type='same')
    learn.model[0].model.load_state_dict({k: v for k,v in load_file(weights).items() if not k.startswith('classifier')})
    learn.model[0] = nn.Sequential(Normalise(*stats), learn.model[0]).to(learn.dls.device) # fastai's loaders normalise
    learn.freeze()
    yield learn
    learn.fine_tune(epochs-1)
    yield learn

def our_model(data, weights, epochs, size):
    "Our loaders and our model, trained as fastai does"
    learn = fine_grained_learner(loaders(data, size), arch, weights=weights, stats=stats, pad_type='same', metrics=accuracy)
    yield learn
    learn.fine_tune(epochs-1)
    yield learn

def row(name, make, data, weights, args, epochs):
    "(a row of the table, seconds)"
    res = []
    for seed in range(args.seeds):
        learn,secs = trained(make, seed, data.split(valid=.3, seed=seed), weights, epochs=epochs, size=args.size)
        res.append((valid(learn), secs))
        print(f'{name}, seed {seed}: {res[-1][0]:.1f} %, {secs:.0f} s', file=sys.stderr, flush=True)
    v,s = np.array(res).T
    return dict(piece=name, valid_top1=spread(v), epochs=epochs, seconds=f'{s.mean():.0f}', seeds=args.seeds),s.mean()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--seeds', type=int, default=3)
    args = p.parse_args()
    weights,data = shared('weights', 'mobilenetv2_100.imagenet1k.safetensors'),fine_grained_data(shared('data', 'cub50', 'CUB_200_2011'))
    first,budget = row("fastai's defaults: fine_tune(4)", fastai, data, weights, args, 5)
    rows = [first, row('our loaders, as many epochs', our_loaders, data, weights, args, 5)[0]]
    for name,make in (('our loaders, in the same time', our_loaders), ('and our model', our_model), ('and our plan: our defaults', ours)):
        rows.append(row(name, make, data, weights, args, fit_in(make, budget, data.split(valid=.3, seed=0), weights, size=args.size))[0])
    table(rows)

if __name__=='__main__': main()
