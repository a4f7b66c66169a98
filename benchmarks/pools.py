"""Second-order pools against the obvious way to the same rows, forward and backward: `python benchmarks/pools.py`

Both sides get all channels (no reduction). Times: in turn, in one process. Memory: by how much the resident set rises
at its highest, each in a process of its own in which malloc gives back at once what is freed.
"""
import argparse, ctypes, multiprocessing, time
import torch, torch.nn.functional as F
from statistics import median
from fgvc_fast.models.second import BilinearPool, CompactPool, CovPool
from _table import goals, table

sizes = dict(small=(32,256,14,14), large=(32,512,28,28))

def matrices(x):
    "Bilinear, the short way: einsum, which torch turns into matrix products; the whole matrix is kept"
    return rooted(torch.einsum('bchw,bdhw->bcd', x, x).flatten(1))

def outer(x):
    "Bilinear, as it is defined: all outer products, then their sum"
    return rooted(torch.einsum('bchw,bdhw->bcdhw', x, x).sum((3,4)).flatten(1))

def rooted(x): return F.normalize(x.sign()*(x.abs()+1e-5).sqrt())

def places(pool, x):
    "Compact, as it was published: each place there and back, then the sum"
    x = x.flatten(2).mT
    def sketch(bins, signs): return torch.fft.rfft(x.new_zeros(*x.shape[:2], pool.nf).index_add(2, bins, x*signs))
    s = sketch(pool.bin_a, pool.sign_a) * sketch(pool.bin_b, pool.sign_b)
    return rooted(torch.fft.irfft(s, n=pool.nf).sum(1))

def eigen(x):
    "Covariance, by torch's own eigendecomposition and its gradient; the whole matrix is kept"
    x = x.flatten(2)
    x = x - x.mean(2, keepdim=True)
    lam,V = torch.linalg.eigh(x @ x.mT / x.shape[2])
    return ((V * lam.clamp(min=1e-10).sqrt()[:,None]) @ V.mT).flatten(1)

def build(what, size):
    "(function from maps to rows, how many maps at a time, floating point operations of the matrix products in our way for all)"
    B,C,h,w = sizes[size]
    gram,n = 2*2*B*C*C*h*w,min(C, h*w)
    flop = gram if C<=h*w else 2*2*B*h*w*h*w*C
    compact = CompactPool(C)
    return {'bilinear: ours': (BilinearPool(C, dim=None), B, gram), 'bilinear: einsum of matrices': (matrices, B, 0), 'bilinear: all outer products': (outer, 1, 0),
        'compact: ours': (compact, B, gram), 'compact: each place': (lambda x: places(compact, x), 1, 0),
        'cov: ours': (CovPool(C, dim=None), B, flop + 5*2*B*n**3 + 6*2*B*C*n*n*(n<C)), 'cov: eigh': (eigen, B, 0)}[what]

whats = ['bilinear: ours','bilinear: einsum of matrices','bilinear: all outer products','compact: ours','compact: each place','cov: ours','cov: eigh']

def step(f, x):
    "Forward and backward"
    rows = f(x)
    rows.backward(rows.detach())
    x.grad = None

def maps(shape): return torch.rand(shape).sub_(.3).relu_().requires_grad_()

def seconds(what, size):
    "A function that times one step; what takes a picture at a time is scaled up to all"
    f,at_a_time,_ = build(what, size)
    B,*shape = sizes[size]
    x = maps((at_a_time,*shape))
    def go():
        t = time.perf_counter()
        step(f, x)
        return (time.perf_counter()-t)*B/at_a_time
    go()
    return go

def kb(k): return int(next(o for o in open('/proc/self/status') if o.startswith(k)).split()[1])

def rise(what, size, to):
    "Send `to` the most MB above what was there before, for one step"
    ctypes.CDLL(None).mallopt(-3, 1_000_000) # M_MMAP_THRESHOLD: what is freed goes back at once
    f,at_a_time,_ = build(what, size)
    x = maps((at_a_time, *sizes[size][1:]))
    step(f, x[:1].detach()[...,:4,:4].requires_grad_()) # libraries have their workspace
    open('/proc/self/clear_refs', 'w').write('5') # the highest mark back to what is there now
    before = kb('VmHWM')
    step(f, x)
    to.send((kb('VmHWM')-before)/1024)

def memory(what, size):
    "Of one step in a process of its own"
    ctx = multiprocessing.get_context('fork') # torch is imported, and has not worked yet
    here,there = ctx.Pipe()
    p = ctx.Process(target=rise, args=(what, size, there))
    p.start()
    p.join()
    return here.recv()

def product_rate():
    a = torch.rand(32, 512, 512)
    def go():
        t = time.perf_counter()
        a @ a
        return 2*32*512**3/(time.perf_counter()-t)/1e9
    go()
    return go

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--rounds', type=int, default=3)
    args = p.parse_args()
    mb = {(k,size): memory(k, size) for size in sizes for k in whats} # before torch has threads, which do not live through a fork
    rate,rows,res = product_rate(),[],[]
    for size,shape in sizes.items():
        fs,took,rates = {k: seconds(k, size) for k in whats},{k: [] for k in whats},[]
        for _ in range(args.rounds): # in turn: the machine's speed drifts
            for k,f in fs.items(): took[k].append(f())
            rates.append(rate())
        for k in whats:
            ours = f"{k.split(':')[0]}: ours"
            s,ratio = median(took[k]),median(a/b for a,b in zip(took[ours], took[k]))
            _,at_a_time,flop = build(k, size)
            row = dict(pool=k, maps='×'.join(map(str, shape)), ms=f'{s*1e3:.0f}', ours_takes='' if k==ours else f'{ratio:.2f} ×', at_a_time=at_a_time, MB=f'{mb[k,size]:.0f}')
            row |= dict(GFLOPs=f'{flop/s/1e9:.0f}', of_rate=f'{flop/s/1e9/median(rates):.0%}') if flop else dict(GFLOPs='', of_rate='')
            rows.append(row)
            if k==ours: continue
            res.append((f'{k}, {size} maps: ours is not slower', f'{ratio:.2f} ×', ratio<=1))
            part = mb[ours,size]/mb[k,size]
            if size=='large' and 'compact' not in k: res.append((f'{k}, {size} maps: ours takes at most half the memory', f'{part:.2f} ×', part<=.5))
    table(rows)
    B,C,h,w = sizes['large']
    print(f'matrix products: {median(rates):.0f} GFLOPs; all outer products of the large maps at once would be {4*B*C*C*h*w/1e9:.1f} GB')
    goals(*res)

if __name__=='__main__': main()
