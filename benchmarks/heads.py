"""Which pool and head under the same time budget? 50 classes of CUB at 128 px, or toy birds (`--data toy`)

    python benchmarks/heads.py --minutes 2 --seeds 1 --log heads.jsonl
    python benchmarks/heads.py --data toy --seeds 3

Each run is a process of its own: it times a training step, trains by the default plan for the number of epochs nearest to the budget (steps alone are counted, at least one epoch), and reads the test split once.
A finished run is a line in the log, and is not done again. Wait until nothing else runs: what is slowed down gets fewer epochs.
"""
import argparse, json, numpy as np, resource, subprocess, sys, time
from pathlib import Path
from _table import shared, table

# keywords of `fine_grained_learner`; those of `dls` under 'dls'
runs = {'linear': {}, 'mlp': dict(head='mlp'), 'cosine': dict(head='cosine'), 'levels': dict(head='levels'),
    'gem': dict(pool='gem'), 'bilinear': dict(pool='bilinear'), 'compact': dict(pool='compact'), 'cov': dict(pool='cov'),
    'attention': dict(pool='attention'), 'class_attention': dict(pool='class_attention'),
    'se': dict(attend={-1: 'se'}), 'eca': dict(attend={-1: 'eca'}), 'cbam': dict(attend={-1: 'cbam'}),
    'parts': dict(pool='parts'), 'parts, closer': dict(pool='parts', closer=True), 'given_parts': dict(pool='given_parts', dls=dict(parts=True)),
    'stages': dict(pool='stages'), 'pyramid': dict(pool='pyramid'), 'branch': dict(branch=-2)}

# Only the processes that train import torch: what their parent holds would count as their memory

def load(name):
    "(data, architecture, its keywords)"
    from fgvc_fast.all import fine_grained_data
    if name=='toy': return fine_grained_data('toy_birds'),'toy_resnet',{}
    weights = shared('weights', 'mobilenetv2_100.imagenet1k.safetensors')
    return fine_grained_data(shared('data', 'cub50', 'CUB_200_2011')),'mobilenetv2_100',dict(weights=weights, stats=([.5]*3, [.5]*3), pad_type='same')

def lacks(kw, data):
    "What is missing for a run, if anything"
    import inspect
    from fgvc_fast.all import fine_grained_learner, heads, pools
    if kw.get('pool', 'avg') not in pools: return f"no pool '{kw['pool']}' in this package"
    if kw.get('head', 'linear') not in heads: return f"no head '{kw['head']}' in this package"
    unknown = set(kw) - set(inspect.signature(fine_grained_learner).parameters) - {'dls'}
    if unknown: return f"fine_grained_learner knows no {', '.join(unknown)}"
    if kw.get('head')=='levels' and len(data.levels)<2: return 'the data have one level only'
    if kw.get('pool')=='given_parts' and data.parts is None: return 'the data mark no parts'

def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def step_seconds(learn, n=12, warm=4):
    "Median time of a training step of the whole model, loading not counted"
    from fastai.vision.all import Callback, CancelFitException
    class Clock(Callback):
        order,run_valid,secs = -100,False,[]
        def before_batch(self): self.start = time.perf_counter()
        def after_batch(self):
            self.secs.append(time.perf_counter()-self.start)
            if len(self.secs)==n: raise CancelFitException
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-4, cbs=Clock())
    return float(np.median(Clock.secs[warm:]))

def one(name, seed, data, size, minutes):
    "Train and test `runs[name]`"
    from fastai.vision.all import accuracy, set_seed
    from fgvc_fast.all import fine_grained_learner
    (data,arch,fixed),kw = load(data),dict(runs[name])
    why = lacks(kw, data)
    if why: return dict(skip=why)
    more = kw.pop('dls', {})
    set_seed(seed)
    dls = data.split(valid=.3, seed=seed).dls(size=size, seed=seed, **more)
    def learner(): return fine_grained_learner(dls, arch, metrics=accuracy, **fixed, **kw)
    learn,before = learner(),peak_mb()
    secs = step_seconds(learn)
    epochs = max(1, round(60*minutes/(secs*len(dls.train))))
    set_seed(seed)
    learn,start = learner(),time.perf_counter()
    with learn.no_bar(), learn.no_logging():
        learn.fit_phases(epochs)
        took,test = time.perf_counter()-start,learn.test().iloc[0].to_dict()
    return dict(valid=learn.phase_log.accuracy.iloc[-1], **test, parameters=sum(p.numel() for p in learn.model.parameters()), mb=peak_mb()-before, ms=1000*secs, epochs=epochs, seconds=took)

def in_process(key):
    "What `one` says in a process of its own; the last line of its error if there was one"
    res = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--one', json.dumps(key)], capture_output=True, text=True)
    last = ([''] + (res.stderr if res.returncode else res.stdout).strip().splitlines())[-1]
    return dict(failed=last or f'ended with {res.returncode}') if res.returncode else json.loads(last)

def spread(o): return 100*np.std(o, ddof=1) if len(o)>1 else float('nan')

def report(done, names):
    "A row for each head, with its difference to the plain one"
    rows,top = [],{k: [o['top1'] for o in done if o['head']==k] for k in names}
    n = int(done[0]['pictures'])
    for k in names:
        these = [o for o in done if o['head']==k]
        if not these: continue
        def mean(c): return float(np.mean([o[c] for o in these]))
        acc,s = 100*mean('top1'),spread(top[k])
        row = {'': k, 'test top-1 %': f'{acc:.1f} ± {s:.1f}' if len(these)>1 else f'{acc:.1f}', 'to plain': '', 'beyond': ''}
        if k!='linear' and top.get('linear'):
            plain,s0 = 100*np.mean(top['linear']),spread(top['linear'])
            room = s+s0 if len(these)>1 and len(top['linear'])>1 else 2*((acc*(100-acc) + plain*(100-plain))/n)**.5
            row |= {'to plain': f'{acc-plain:+.1f}', 'beyond': 'yes' if abs(acc-plain)>room else 'no'}
        row |= {t: f'{f*mean(c):.{d}f}' for t,c,f,d in (('family %','family_accuracy',100,1), ('severity','mistake_severity',1,2)) if c in these[0]}
        row |= {'parameters': f"{these[0]['parameters']:,}", 'peak MB': f"{mean('mb'):.0f}", 'ms a step': f"{mean('ms'):.0f}", 'epochs': f"{mean('epochs'):.0f}", 'seconds': f"{mean('seconds'):.0f}", 'seeds': len(these)}
        rows.append(row)
    table(rows)
    print(f'± standard deviation over seeds, on {n} test pictures; beyond: further from the plain head than both spreads together, for a single seed than two standard errors of so many pictures')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', choices=['cub50','toy'], default='cub50')
    p.add_argument('--minutes', type=float, default=2, help='of training steps in each run')
    p.add_argument('--seeds', type=int, help='1, for toy birds 3')
    p.add_argument('--size', type=int, help='pixels: 128, for toy birds 96')
    p.add_argument('--heads', nargs='+', choices=runs, default=list(runs), metavar='NAME', help=f'of {list(runs)}')
    p.add_argument('--log', type=Path, default=Path('heads.jsonl'))
    p.add_argument('--one', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one: return print(json.dumps(one(**json.loads(args.one))))
    toy = args.data=='toy'
    same = dict(data=args.data, size=args.size or (96 if toy else 128), minutes=args.minutes)
    if not toy: shared('data', 'cub50', 'CUB_200_2011')
    keys = [dict(name=o, seed=s, **same) for s in range(args.seeds or (3 if toy else 1)) for o in args.heads]
    log = [json.loads(o) for o in args.log.read_text().splitlines()] if args.log.exists() else []
    done,left_out = [],set()
    for key in keys:
        if key['name'] in left_out: continue
        res = next((o for o in log if o['key']==key), None)
        if res is None:
            res = dict(key=key, head=key['name'], **in_process(key))
            why = res.get('skip') or res.get('failed')
            if why:
                print(f"{'skipped' if 'skip' in res else 'FAILED'}: {key['name']}, {why}", flush=True)
                left_out.add(key['name'])
                continue
            with args.log.open('a') as f: f.write(json.dumps(res)+'\n')
            print(f"{key['name']}, seed {key['seed']}: top-1 {100*res['top1']:.1f} %, {res['epochs']} epochs, {res['seconds']:.0f} s", file=sys.stderr, flush=True)
        done.append(res)
    if not done: sys.exit('nothing was measured')
    print(f"{args.data}, {same['size']} px, {args.minutes:g} minutes of training steps, batches of 32")
    report(done, args.heads)

if __name__=='__main__': main()
