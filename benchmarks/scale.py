"""Three million rows of ten thousand classes, as in iNaturalist: what the table, the loaders, the workers' memory and the metrics cost

    python benchmarks/scale.py                        # two or three minutes on two cores, 3 GB
    python benchmarks/scale.py --rows 300000 --batches 400

Only rows are many: each class is a folder that links to one folder of small JPEGs, so every path is another string and leads to a file. Names are as long as iNaturalist's. `own` is
memory that a process shares with nobody (USS), `share` its part of all that it shares (PSS): a worker that copies what its parent holds moves the first, whatever it is called.
"""
import argparse, numpy as np, os, pandas as pd, psutil, shutil, tempfile, time, torch, tracemalloc, uuid, warnings
from fgvc_fast.all import FineGrainedData, FineGrainedInterpretation
from pathlib import Path
from PIL import Image
from types import SimpleNamespace
from _table import goals, table

bs,size = 32,64

def folders(root, rows, classes):
    "`rows` paths under `root`, and their labels; the files behind them are those of one class"
    rng = np.random.default_rng(0)
    files = [f'{uuid.UUID(bytes=rng.bytes(16))}.jpg' for _ in range(rows//classes)]
    (root/'photos').mkdir()
    for o in files: Image.fromarray(rng.integers(0, 256, (96,96,3), np.uint8)).resize((80,80)).save(root/'photos'/o)
    names = [f'{i:05d}_Animalia_Chordata_Aves_Passeriformes_Familiaridae_Genus_species{i}' for i in range(classes)]
    for o in names: (root/o).symlink_to('photos')
    return pd.DataFrame(dict(path=[f'{c}/{o}' for c in names for o in files], label=np.repeat(names, len(files))))

def timed(f):
    t = time.perf_counter()
    return f(),time.perf_counter()-t

def held(o):
    "Megabytes of process `o`: (own, share)"
    m = o.memory_full_info()
    return np.array([m.uss, m.pss])/1e6

def memory(dl, batches, every):
    "Memory of the parent and of each worker, every so many batches: (n, processes, 2)"
    me,res = psutil.Process(),[]
    while True:
        for xb,yb in dl: # a worker ends with its epoch, and starts as small as it was: one epoch has to be long enough
            res.append([held(o) for o in (me, *sorted(me.children(), key=lambda o: o.pid))] if len(res)%every==every-1 else None)
            if len(res)==batches: return {i+1: np.array(o) for i,o in enumerate(res) if o is not None}
        raise SystemExit(f'{len(res)} batches are an epoch: give --batches fewer, or --rows more')

def per_batch(it, n):
    "Seconds for each of the next `n` batches of `it`"
    return [timed(lambda: next(it))[1] for _ in range(n)]

def metrics(classes, n=100_000):
    "(seconds, megabytes at most, pairs counted) of metrics and confusions of `n` answers, of which a third are wrong"
    rng = np.random.default_rng(0)
    targs = torch.from_numpy(rng.integers(0, classes, n))
    preds = torch.where(torch.from_numpy(rng.random(n)<1/3), (targs+torch.from_numpy(rng.integers(1, 20, n)))%classes, targs)
    learn = SimpleNamespace(dls=SimpleNamespace(vocab=[f'species {i}' for i in range(classes)]))
    interp = FineGrainedInterpretation(learn, None, preds, targs, torch.ones(n), torch.zeros(n))
    tracemalloc.start()
    (per_class,pairs),s = timed(lambda: (interp.per_class(), interp.most_confused()))
    mb = tracemalloc.get_traced_memory()[1]/1e6
    tracemalloc.stop()
    assert pairs.times.sum()==(preds!=targs).sum() and per_class.pictures.sum()==n
    return s,mb,len(pairs)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', type=int, default=3_000_000)
    p.add_argument('--classes', type=int, default=10_000)
    p.add_argument('--batches', type=int, default=2_000)
    args = p.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    try: run(root, args)
    finally: shutil.rmtree(root)

def run(root, args):
    items = folders(root, args.rows, args.classes)
    data,t_table = timed(lambda: FineGrainedData(items, root).split(.1, .1))
    kw = dict(size=size, bs=bs, num_workers=2, cache=False, device='cpu')
    dls,t_dls = timed(lambda: data.dls(**kw))
    del items
    print(f'{data}\n{data.items.path.iat[-1]}\ntable and split {t_table:.1f} s, .dls() {t_dls:.1f} s, {os.cpu_count()} cores')

    every = max(args.batches//10, 1)
    mem = memory(dls.train, args.batches, every)
    who = ['parent','worker 1','worker 2']
    table([{'batch': str(b), **{f'{w} {k}': f'{m[i,j]:.0f}' for i,w in enumerate(who) for j,k in enumerate(('own','share'))}} for b,m in mem.items()])
    first,last = min(mem),max(mem)
    parent,*workers = (mem[last]-mem[first])[:,0] # megabytes that each came to own
    arrays,dls.train.quick.picture.paths = dls.train.quick.picture.paths,list(data.items.path)
    mem = memory(dls.train, args.batches, every)
    dls.train.quick.picture.paths = arrays
    print(f'the same with paths in a list of Python strings: a worker comes to own {(mem[last]-mem[first])[1:,0].max():.0f} MB more')

    few = FineGrainedData(data.items.iloc[::max(args.rows//30_000, 1)], root, valid=.1).dls(**{**kw, 'num_workers': 0})
    its = [iter(o) for o in (data.dls(**{**kw, 'num_workers': 0}).train, few.train)]
    for it in its: per_batch(it, 20)
    times = np.array([[per_batch(it, 20) for it in its] for _ in range(15)]) # (rounds, many and few, batches)
    many,little = np.median(times, axis=(0,2))*1e3
    print(f'a batch of {bs}, in one process: {many:.2f} ms with {len(dls.train_ds):,} training rows, {little:.2f} ms with {len(few.train_ds):,}')
    ratio = np.median(np.median(times[:,0], axis=1)/np.median(times[:,1], axis=1)) # round by round

    n = 100_000
    s,mb,pairs = metrics(args.classes, n)
    print(f'metrics and confusions of {n:,} answers in {args.classes:,} classes: {s:.2f} s, {mb:.0f} MB, {pairs:,} pairs of classes (a matrix of all would take {8*args.classes**2/1e6:,.0f} MB)')
    goals(('table built and split in under a minute', f'{t_table:.1f} s', t_table<60),
        ('.dls() in under ten seconds', f'{t_dls:.1f} s', t_dls<10),
        (f'a worker comes to own less than 20 MB between batch {first} and {last}', f'{max(workers):.1f} MB', max(workers)<20),
        ('and so does the parent', f'{parent:.1f} MB', parent<20),
        ('a batch costs as much with all rows as with 30,000, within 5 %', f'× {ratio:.3f}', ratio<1.05),
        ('per-class metrics and confusions of 100,000 answers in under 50 MB', f'{mb:.0f} MB', mb<50))

if __name__=='__main__': main()
