"""Ten epochs of the head alone on 50 classes of CUB-200-2011: through the frozen body, and on features that it gives once

    python benchmarks/cached_features.py --seeds 10

Training pictures are split 70 : 30 (the test split is not touched), decoded before the clock starts, and ways take turns within a seed. Wall time holds the feature pass, training, and
validation after every epoch; CPU time of the process is shown beside it, for a machine that is shared. `--ways` times the pass alone: batch sizes, memory formats, norms folded in or not.
"""
import argparse, numpy as np, time, torch
from contextlib import nullcontext
from copy import deepcopy
from fastai.vision.all import accuracy, set_seed
from fgvc_fast.all import fine_grained_learner
from fgvc_fast.train.cached_features import _fused, frozen_features
from fgvc_fast.train.groups import freeze_below
from _table import cub50, goals, spread, table

ways = {'through the body': None, 'plain picture': 0, 'one view': 1, 'two views': 2, 'four views': 4}

def learner(data, body, args, seed):
    set_seed(seed)
    dls = data.dls(size=args.size, seed=seed, num_workers=0)
    return fine_grained_learner(dls, **body, pool=args.pool, metrics=accuracy)

def run(cached_views, learn, epochs):
    "(accuracy after the last epoch, wall seconds, CPU seconds)"
    wall,cpu = time.perf_counter(),time.process_time()
    with learn.no_bar(), learn.no_logging(), freeze_below(learn, 'head'), nullcontext() if cached_views is None else frozen_features(learn, cached_views):
        learn.fit_one_cycle(epochs, 1e-2)
    return learn.recorder.values[-1][-1]*100,time.perf_counter()-wall,time.process_time()-cpu

def compare(data, body, args):
    res = {k: [] for k in ways}
    for seed in range(args.seeds):
        own = data.split(valid=.3, seed=seed)
        for dl in learner(own, body, args, seed).dls.loaders: [None for _ in dl] # decodes and keeps
        for k,cached_views in ways.items(): res[k].append(run(cached_views, learner(own, body, args, seed), args.epochs))
        print(f'seed {seed}:', '; '.join(f'{k} {v[-1][0]:.1f} % {v[-1][1]:.0f} s (CPU {v[-1][2]:.0f} s)' for k,v in res.items()), flush=True)
    res = {k: np.array(v) for k,v in res.items()}
    base = res['through the body']
    table([dict(way=k, valid_top1=spread(v[:,0]), apart=spread((v-base)[:,0], '+'), wall_s=v[:,1].mean(), cpu_s=v[:,2].mean(),
        faster_wall=(base[:,1]/v[:,1]).mean(), faster_cpu=(base[:,2]/v[:,2]).mean()) for k,v in res.items()])
    plain = res['plain picture'] # the default
    gap,times = (plain-base)[:,0].mean(),(base[:,1]/plain[:,1]).mean()
    goals(('plain pictures at least 10 × faster', f'{times:.1f} ×', times>=10), ('its accuracy within 1 point', f'{gap:+.1f} points', abs(gap)<=1))

def passes(data, body, args, n=128):
    "CPU milliseconds a picture of the body alone"
    torch.set_num_threads(1)
    model = learner(data.split(valid=.3, seed=0), body, args, 0).model.eval().requires_grad_(False)
    x = torch.rand(n, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(): quick = _fused(model, x[:2])
    flat = [deepcopy(o).to(memory_format=torch.contiguous_format) for o in (model, quick)]
    def ms(model, x, bs, mode=torch.inference_mode):
        def once():
            t = time.process_time()
            for o in x.split(bs): model.see(o)
            return (time.process_time()-t)/n*1e3
        with mode(): return min(once() for _ in range(args.rounds))
    rows = [dict(batch=bs, as_it_trains=ms(model, x, bs, nullcontext), inference_mode=ms(model, x, bs), folded=ms(quick, x, bs),
        folded_channels_first=ms(flat[1], x.contiguous(), bs)) for bs in (8,16,32,64,128)]
    table(rows)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--epochs', type=int, default=10)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--seeds', type=int, default=10)
    p.add_argument('--pool', default='avg')
    p.add_argument('--ways', action='store_true', help='time the pass alone')
    p.add_argument('--rounds', type=int, default=5, help='of which the quickest counts, for --ways')
    args = p.parse_args()
    data,body = cub50()
    print(data)
    (passes if args.ways else compare)(data, body, args)

if __name__=='__main__': main()
