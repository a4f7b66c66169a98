"""Does a model trained through the cache know as much? The same seeds, so the same crops, with and without it; validation only

    python benchmarks/cache_accuracy.py --epochs 3 --size 96 --seeds 3
"""
import argparse, numpy as np, shutil, tempfile, time, warnings
from fastai.vision.all import accuracy, set_seed
from fgvc_fast.all import fine_grained_learner
from _table import cub50, goals, spread, table

def run(data, body, seed, args, cache):
    "(validation accuracy in %, seconds)"
    start = time.perf_counter()
    dls = data.split(valid=.3, seed=seed).dls(size=args.size, seed=seed, cache=cache)
    set_seed(seed)
    learn = fine_grained_learner(dls, **body, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(args.epochs)
    return learn.recorder.values[-1][-1]*100,time.perf_counter()-start

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--epochs', type=int, default=3)
    p.add_argument('--size', type=int, default=96)
    p.add_argument('--seeds', type=int, default=3)
    args = p.parse_args()
    warnings.filterwarnings('ignore')
    data,body = cub50()
    tmp,rows,res = tempfile.mkdtemp(),[],{}
    for name,cache in (('decoded in every epoch', False), ('through the cache', tmp)):
        res[name] = np.array([run(data, body, seed, args, cache) for seed in range(args.seeds)])
        acc,secs = res[name].T
        rows.append({'': name, 'valid accuracy %': spread(acc), 'each seed': ' '.join(f'{o:.1f}' for o in acc), 'seconds': f'{secs.mean():.0f}'})
    shutil.rmtree(tmp)
    table(rows)
    plain,cached = [o[:,0] for o in res.values()]
    diff,noise = (cached-plain).mean(),max(plain.std(ddof=1), .1)*np.sqrt(2/args.seeds) if args.seeds>1 else np.inf
    goals((f'difference within twice its standard error from seed to seed', f'{diff:+.1f} points, ± {noise:.1f}', abs(diff)<=2*noise))

if __name__=='__main__': main()
