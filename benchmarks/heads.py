"""Which pool and head under the same time budget? 50 classes of CUB at 128 px, or toy birds (`--data toy`)

    python benchmarks/heads.py --epochs 4 --log heads.jsonl
    python benchmarks/heads.py --data toy --epochs 6 --seeds 3

The budget is the time that the plain head takes for `--epochs`. How much longer another head's training step takes is measured once, in turn with the plain head's, and it trains for the number of epochs nearest to the budget (at least one).
Each run is a process of its own: it trains by the default plan and reads the test split once. A finished run is a line in the log, and is not done again.
"""
import argparse, json, numpy as np, resource, subprocess, sys, time
from pathlib import Path
from scipy.stats import t
from _table import cub50, shared, table

# keywords of `fine_grained_learner`; those of `dls` under 'dls'
runs = {'linear': {}, 'mlp': dict(head='mlp'), 'cosine': dict(head='cosine'), 'levels': dict(head='levels'),
    'gem': dict(pool='gem'), 'bilinear': dict(pool='bilinear'), 'compact': dict(pool='compact'), 'cov': dict(pool='cov'),
    'attention': dict(pool='attention'), 'class_attention': dict(pool='class_attention'),
    'se': dict(blocks={-1: 'se'}), 'eca': dict(blocks={-1: 'eca'}), 'cbam': dict(blocks={-1: 'cbam'}),
    'parts': dict(pool='parts'), 'parts, closer': dict(pool='parts', zoom=True), 'annotated_parts': dict(pool='annotated_parts', dls=dict(parts=True)),
    'stages': dict(pool='stages'), 'pyramid': dict(pool='pyramid'), 'branch': dict(branch=-2)}

# Only the processes that train import torch: what their parent holds would count as their memory

def load(name):
    "(data, body as options of the learner)"
    from fgvc_fast.all import fine_grained_data
    return (fine_grained_data('toy_birds'),dict(arch='toy_resnet')) if name=='toy' else cub50()

def lacks(kw, data):
    "What is missing for a run, if anything"
    import inspect
    from fgvc_fast.all import fine_grained_learner, heads, pools
    if kw.get('pool', 'avg') not in pools: return f"no pool '{kw['pool']}' in this package"
    if kw.get('head', 'linear') not in heads: return f"no head '{kw['head']}' in this package"
    unknown = set(kw) - set(inspect.signature(fine_grained_learner).parameters) - {'dls'}
    if unknown: return f"fine_grained_learner knows no {', '.join(unknown)}"
    if kw.get('head')=='levels' and len(data.levels)<2: return 'the data have one level only'
    if kw.get('pool')=='annotated_parts' and data.parts is None: return 'the data mark no parts'

def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def maker(name, seed, data, size):
    "(the loaders, a function that builds the learner for `runs[name]`), or what is missing for it"
    from fastai.vision.all import accuracy, set_seed
    from fgvc_fast.all import fine_grained_learner
    (data,fixed),kw = load(data),dict(runs[name])
    why = lacks(kw, data)
    if why: return why,None
    more = kw.pop('dls', {})
    set_seed(seed)
    dls = data.split(valid=.3, seed=seed).dls(size=size, seed=seed, **more)
    return dls,lambda: fine_grained_learner(dls, metrics=accuracy, **fixed, **kw)

def cost(name, data, size, rounds=7):
    "How many times as long as with the plain head a training step takes, and its time; on one batch, loading not counted"
    from fastai.data.core import DataLoaders
    from step import Same, seconds
    def stepper(o):
        dls,learner = maker(o, 0, data, size)
        if learner is None: return dls
        learn,batch = learner(),dls.one_batch()
        def go(n):
            learn.dls = DataLoaders(Same(batch, n), Same(batch, 0))
            with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
        go(1)
        return go
    plain,ours = stepper('linear'),stepper(name)
    if isinstance(ours, str): return dict(skip=ours)
    pairs = [(seconds(plain, 2), seconds(ours, 2)) for _ in range(rounds)] # in turn: the machine's speed drifts
    return dict(ratio=float(np.median([b/a for a,b in pairs])), ms=1000*float(np.median([b for _,b in pairs])))

def one(name, seed, data, size, epochs):
    "Train and test `runs[name]`"
    from fastai.vision.all import set_seed
    _,learner = maker(name, seed, data, size)
    set_seed(seed)
    learn,before,start = learner(),peak_mb(),time.perf_counter()
    with learn.no_bar(), learn.no_logging():
        learn.fit_phases(epochs)
        took,test = time.perf_counter()-start,learn.test().iloc[0].to_dict()
    return dict(valid=learn.phase_log.accuracy.iloc[-1], **test, parameters=sum(p.numel() for p in learn.model.parameters()), mb=peak_mb()-before, seconds=took)

def in_process(f, **kw):
    "What the function named `f` says in a process of its own; the last line of its error if there was one"
    res = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--call', json.dumps([f,kw])], capture_output=True, text=True)
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
            plain = 100*np.mean(top['linear'])
            pairs = np.array([*zip(top[k], top['linear'])]) # by seed
            room = t.ppf(.975, len(pairs)-1)*spread(pairs[:,0]-pairs[:,1])/len(pairs)**.5 if len(pairs)>1 else 2*((acc*(100-acc) + plain*(100-plain))/n)**.5
            row |= {'to plain': f'{acc-plain:+.1f}', 'beyond': 'yes' if abs(acc-plain)>room else 'no'}
        row |= {t: f'{f*mean(c):.{d}f}' for t,c,f,d in (('family %','family_accuracy',100,1), ('severity','mistake_severity',1,2)) if c in these[0]}
        row |= {'parameters': f"{these[0]['parameters']:,}", 'peak MB': f"{mean('mb'):.0f}", 'ms a step': f"{mean('ms'):.0f}", '× plain': f"{mean('ratio'):.2f}", 'epochs': f"{mean('epochs'):.0f}", 'seconds': f"{mean('seconds'):.0f}", 'seeds': len(these)}
        rows.append(row)
    table(rows)
    print(f'± standard deviation over seeds, on {n} test pictures; beyond: further from the plain head than as many seeds allow for one comparison (a paired t-test), for a single seed than two standard errors of so many pictures')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', choices=['cub50','toy'], default='cub50')
    p.add_argument('--epochs', type=int, default=4, help='of the plain head: the time that all get')
    p.add_argument('--seeds', type=int, help='1, for toy birds 3')
    p.add_argument('--size', type=int, help='pixels: 128, for toy birds 96')
    p.add_argument('--heads', nargs='+', choices=runs, default=list(runs), metavar='NAME', help=f'of {list(runs)}')
    p.add_argument('--log', type=Path, default=Path('heads.jsonl'))
    p.add_argument('--call', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.call:
        f,kw = json.loads(args.call)
        return print(json.dumps(dict(one=one, cost=cost)[f](**kw)))
    toy = args.data=='toy'
    where = dict(data=args.data, size=args.size or (96 if toy else 128))
    if not toy: shared('data', 'cub50', 'CUB_200_2011')
    log,done,left_out = [json.loads(o) for o in args.log.read_text().splitlines()] if args.log.exists() else [],[],set()

    def known(f, **kw):
        "What `f` said, now or as the log has it; None if it failed"
        res = next((o for o in log if o['key']==[f,kw]), None)
        if res: return res
        res = dict(key=[f,kw], **in_process(f, **kw))
        why = res.get('skip') or res.get('failed')
        if why:
            print(f"{'skipped' if 'skip' in res else 'FAILED'}: {kw['name']}, {why}", flush=True)
            return left_out.add(kw['name'])
        log.append(res)
        with args.log.open('a') as file: file.write(json.dumps(res)+'\n')
        return res

    for seed in range(args.seeds or (3 if toy else 1)):
        for name in args.heads:
            took = None if name in left_out else known('cost', name=name, **where)
            if took is None: continue
            epochs = max(1, round(args.epochs/took['ratio'])) if name!='linear' else args.epochs
            res = known('one', name=name, seed=seed, epochs=epochs, **where)
            if res is None: continue
            done.append(res | dict(head=name, epochs=epochs, ratio=took['ratio'], ms=took['ms']))
            print(f"{name}, seed {seed}: top-1 {100*res['top1']:.1f} %, {epochs} epochs, {res['seconds']:.0f} s", file=sys.stderr, flush=True)
    if not done: sys.exit('nothing was measured')
    print(f"{args.data}, {where['size']} px, the time of {args.epochs} epochs of the plain head, batches of 32")
    report(done, args.heads)

if __name__=='__main__': main()
