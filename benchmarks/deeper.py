"""What training the body adds to a solved head, at which rate, and from which head: an experiment that `fit_minutes` was built by

    python benchmarks/deeper.py --data grocery81 --epochs 4 --fresh 1e-3 3e-3 --solved 1e-4 3e-4 1e-3
    python benchmarks/deeper.py --data toy --epochs 8 --fresh 1e-3 5e-3 --solved 1e-3 3e-3 1e-2
    python benchmarks/deeper.py --data cub50 --epochs 5 --fresh 1e-3 --shares 1 .75 .5 .25 0 [--looks 3]

`fresh`: the default plan, the head first and then everything at the rate; `solved`: everything, from a head that was solved for. Accuracy on the validation split (of cub50 30 % of what is not for the test) after that, and with the head solved for once more. `--shares`: and with heads, second moments among what they see, that are solved for at the size for looking, on bodies that lie so far on the way from where the training began to where it ended. The test split is not read.
"""
import argparse, numpy as np, sys, time
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fgvc_fast.all import Phase, fine_grained_learner
from fgvc_fast.train.minutes import _set_up
from fgvc_fast.train.phases import default_plan
from minutes import of
from _table import spread, table

def run(data, body, sizes, epochs, head, lr, seed, shares, looks):
    "Validation accuracy, %, at the beginning, after training, with the head solved for again, and with heads at `shares` of the way; seconds of training"
    set_seed(seed)
    size,look = sizes
    learn,res = fine_grained_learner(data.dls(size, seed=seed), **body, metrics=accuracy),[np.nan]
    def solved():
        learn.fit_head()
        return 100*learn.validate()[1]
    with learn.no_bar(), learn.no_logging():
        if head=='solved': res = [solved()]
        first = {k: v.clone() for k,v in learn.model.body.state_dict().items()}
        start = time.perf_counter()
        learn.fit_phases(default_plan(epochs, drop=1e-2/lr) if head=='fresh' else Phase('all', epochs, lr=lr, ratio=10., freeze_bn=True))
        secs = time.perf_counter()-start
        res += [100*learn.validate()[1], solved()]
        last = {k: v.clone() for k,v in learn.model.body.state_dict().items()}
        if shares: _set_up(learn, (looks,64,False), (look*min(looks, 2),)*2, {})
        for share in shares:
            learn.model.body.load_state_dict({k: first[k].lerp(v, share) if v.is_floating_point() else v for k,v in last.items()})
            res.append(solved())
        return *res,secs

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='grocery81', choices=('cub50','grocery81','toy'))
    p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--looks', type=int, default=1)
    for o in ('fresh','solved','shares'): p.add_argument(f'--{o}', type=float, nargs='*', default=[])
    args = p.parse_args()
    data,body,*sizes = of(args.data)
    rows,names = [],('before %','after %','solved again %', *[f'at {o:g} of the way' for o in args.shares])
    def split(seed): return data.split(valid=.3, seed=seed) if args.data=='cub50' else data
    for head,lr in [(k, o) for k in ('fresh','solved') for o in getattr(args, k)]:
        got = [run(split(seed), body, sizes, args.epochs, head, lr, seed, args.shares, args.looks) for seed in range(args.seeds)]
        *accs,secs = np.array(got).T
        rows.append({'head': head, 'rate': f'{lr:g}', **{k: '' if np.isnan(v).any() else spread(v) for k,v in zip(names, accs)}, 'seconds': f'{secs.mean():.0f}'})
        print(rows[-1], file=sys.stderr, flush=True)
    print(data), table(rows)

if __name__=='__main__': main()
