"""What a minute buys: fastai's `fine_tune(4)`, scikit-learn on frozen features, `fit_phases` and `fit_minutes`, each in a process of its own

    python benchmarks/minutes.py --seeds 3                        # 50 classes of CUB, the wall time of fine_tune(4) at 128 px, and an eighth of it
    python benchmarks/minutes.py --data grocery81 --seconds 240
    python benchmarks/minutes.py --data toy --seconds 60

Where `--seconds` are given, fastai trains at its best rate, for the epochs that fit. Clocks run from the loaders to the end of training, the first decoding included: pictures are kept in a folder that is new. The test split is read once by each row, at the end. scikit-learn is given the validation pictures too, which the others choose by, and its C is cross-validated; so are the heads of the rows `with valid`, in the end.
"""
import argparse, json, numpy as np, subprocess, sys, tempfile, time, warnings

rows = ('fine_tune','probe','fit_phases','fit_minutes','with valid','an eighth','an eighth with valid')

def of(name):
    "The data, the body, and sizes to train and to look at"
    from _table import cub50, shared
    from fgvc_fast.all import fine_grained_data
    data,body = cub50()
    if name=='toy': return fine_grained_data('toy_birds'),dict(arch='toy_resnet'),96,96
    return (fine_grained_data(shared('data', 'grocery81')) if name=='grocery81' else data),body,128,224

def probe(data, body, size, cache):
    "Test accuracy and seconds of logistic regression on plain frozen features"
    import torch
    from fgvc_fast.all import fine_grained_learner
    from fgvc_fast.train.cached_features import frozen_rows
    from solved_head import theirs
    start = time.perf_counter()
    learn = fine_grained_learner(data.dls(size, cache=cache), **body)
    with learn.no_bar():
        x,y = [torch.cat(o).numpy() for o in zip(*[frozen_rows(learn, i) for i in (0,1)])]
        at = fine_grained_learner(data.dls(size, cache=False, valid='test'), **body)
        began = time.perf_counter()
        held,targs = frozen_rows(at, 1)
        began -= time.perf_counter() # the test pictures are no part of the time
        return (theirs(x, y, held.numpy())==targs.numpy()).mean(),time.perf_counter()-start+began,''

def row(name, kind, seed, seconds):
    "(test accuracy, seconds, what was done) of one row"
    from fastai.torch_core import set_seed
    warnings.filterwarnings('ignore')
    data,body,size,look = of(name)
    set_seed(seed)
    with tempfile.TemporaryDirectory() as cache:
        if kind=='probe': return probe(data, body, look, cache)
        if kind=='fine_tune':
            from cub50 import fastai, fit_in, tested, trained
            epochs = fit_in(fastai, seconds, data, body, size=size, few=2, more=3) if seconds else 5
            learn,secs = trained(fastai, seed, data, body, epochs=max(epochs, 2), size=size, **dict(lr=8e-3) if seconds else {}) # the best rate of the grid of cub50.py
            return tested(learn, fastai, data)/100,secs,f'{max(epochs, 2)-1} epochs'
        from fastai.metrics import accuracy
        from fgvc_fast.all import fine_grained_learner
        start = time.perf_counter()
        learn = fine_grained_learner(data.dls(size if kind=='fit_phases' else look, seed=seed, cache=cache), **body, metrics=accuracy)
        with learn.no_bar(), learn.no_logging():
            if kind=='fit_phases':
                n = 3 # from the time of so many epochs, as many as fit
                learn.fit_phases(n)
                each = (time.perf_counter()-start)/n
                start,epochs = time.perf_counter(),max(int(seconds/each), 1)
                learn = fine_grained_learner(data.dls(size, seed=seed, cache=cache), **body, metrics=accuracy)
                learn.fit_phases(epochs)
                what = f'{epochs} epochs'
            else:
                tried = learn.fit_minutes((seconds-(time.perf_counter()-start))/60, use_valid='with valid' in kind)
                what = tried.step[tried.kept].item()
            secs = time.perf_counter()-start
            return learn.test().top1.item(),secs,what

def asked(name, kind, seed, seconds):
    "The same in a process of its own"
    p = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--data', name, '--row', kind, '--seed', str(seed), '--seconds', str(seconds)], capture_output=True, text=True)
    if p.returncode: raise RuntimeError(p.stderr[-2000:])
    return json.loads(p.stdout.splitlines()[-1])

def main():
    from _table import goals, spread, table
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='cub50', choices=('cub50','grocery81','toy'))
    p.add_argument('--seconds', type=float, help='for each; None: the wall time of fine_tune(4), of cub50 alone')
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--row', choices=rows), p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', nargs='+', choices=rows)
    args = p.parse_args()
    if args.row: return print(json.dumps([float(o) if i<2 else o for i,o in enumerate(row(args.data, args.row, args.seed, args.seconds))]))
    if args.data!='cub50' and not args.seconds: p.error('--seconds: say how long')
    got,seconds = {},args.seconds
    for kind in rows:
        if kind=='fine_tune' and args.data!='cub50' or args.only and kind not in args.only: continue
        got[kind] = [asked(args.data, kind, seed, (seconds or 0)/(8 if 'eighth' in kind else 1)) for seed in range(1 if kind=='probe' else args.seeds)]
        if kind=='fine_tune' and not seconds: seconds = np.mean([o[1] for o in got[kind]])
        print(kind, got[kind], file=sys.stderr, flush=True)
    table([{'': k, 'test top-1 %': spread([100*o[0] for o in v]), 'seconds': f'{np.mean([o[1] for o in v]):.0f}', 'what': '; '.join(sorted({o[2] for o in v})), 'seeds': len(v)} for k,v in got.items()])
    acc = {k: 100*np.mean([o[0] for o in v]) for k,v in got.items()}
    bars = dict(cub50=(('fit_minutes',80), ('with valid',80), ('an eighth',75), ('an eighth with valid',75)), toy=(('fit_minutes',97),)).get(args.data, ())
    lines = [(f'{k} >= {b} %', f'{acc[k]:.1f} %', acc[k]>=b) for k,b in bars if k in acc]
    lines += [(f'fit_minutes >= {k}', f"{acc['fit_minutes']-acc[k]:+.1f}", acc['fit_minutes']>=acc[k]-.5*(k=='probe')) for k in ('probe','fit_phases') if k in acc and 'fit_minutes' in acc]
    lines += [(f'{k} within 5 % of its time', f'{np.mean([o[1] for o in got[k]]):.0f} of {t:.0f} s', np.mean([o[1] for o in got[k]])<=1.05*t)
        for k,t in [(k, (seconds or 0)/(8 if 'eighth' in k else 1)) for k in rows[3:]] if k in got]
    goals(*lines)

if __name__=='__main__': main()
