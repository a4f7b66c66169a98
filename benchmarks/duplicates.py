"How well and how fast the same picture is found twice, on 2,889 photographs of birds: `python benchmarks/duplicates.py`"
import os, resource, tempfile, time
import numpy as np, pandas as pd
from pathlib import Path
from PIL import ImageEnhance, ImageOps
from _table import goals, shared, table
from fgvc_fast.data.duplicates import _near
from fgvc_fast.datasets.formats import read_cub
from fgvc_fast.data.table import FineGrainedData

def cropped(im, share):
    x,y = round(im.width*share),round(im.height*share)
    return im.crop((x, y, im.width-x, im.height-y))

changes = {'saved again': lambda im: im, 'half the size': lambda im: im.resize((im.width//2, im.height//2)), 'brighter': lambda im: ImageEnhance.Brightness(im).enhance(1.3),
    'grey': lambda im: im.convert('L'), 'mirrored': ImageOps.mirror, '2 % off each side': lambda im: cropped(im, .02), '5 % off each side': lambda im: cropped(im, .05)}
distances = 8,16,24,32,40,48,56,64
# what stands there twice as published, judged by eye among all pairs that differ in at most 70 bits
real = {('Bronzed_Cowbird_0025_796213.jpg','Bronzed_Cowbird_0074_24045.jpg'), ('Black_Billed_Cuckoo_0043_795324.jpg','Black_Billed_Cuckoo_0089_795322.jpg'),
    ('Laysan_Albatross_0065_809.jpg','Laysan_Albatross_0096_673.jpg')}

def planted(data, to, n=60):
    "`data` with `n` copies for each of `changes`, every copy of another picture, and which copy is made how"
    known,rows,how = {o for p in real for o in p},[],{}
    free = [i for i in np.random.default_rng(0).permutation(len(data)) if data.path(i).name not in known]
    for k,(nm,f) in enumerate(changes.items()):
        for i in free[k*n:(k+1)*n]:
            fn = to/f'{k}_{i}.jpg'
            f(data.picture(i)).save(fn, quality=60)
            rows.append(data.items.iloc[[i]].assign(path=str(fn)))
            how[str(fn)] = nm,data.items.path[i]
    return FineGrainedData(pd.concat([data.items, *rows]), data.root, valid=0),how

def quality(data):
    "A row per distance: share of copies found for each kind of change, false pairs, precision"
    with tempfile.TemporaryDirectory() as d:
        both,how = planted(data, Path(d))
        pairs = both.duplicates(max(distances), progress=False)
    def kind(a, b):
        if tuple(sorted((Path(a).name, Path(b).name))) in real: return 'real'
        for x,y in ((a,b),(b,a)):
            if x in how and how[x][1]==y: return how[x][0]
        return 'false'
    pairs['kind'] = [kind(*o) for o in zip(pairs.path_a, pairs.path_b)]
    for dist in distances:
        n = pairs.kind[pairs.distance<=dist].value_counts()
        copies = sum(n.get(o, 0) for o in changes)
        yield {'bits':dist, **{f'{o}, %':100*n.get(o, 0)/60 for o in changes}, 'real (of 3)':n.get('real', 0), 'false':n.get('false', 0), 'precision, %':100*(1-n.get('false', 0)/max(n.sum(), 1))}

def speed(data, n=12_000):
    "Rows of seconds: all of it for `n` files, its second half alone for 100,000, and pictures as a camera gives them"
    items = pd.concat([data.items]*(n//len(data)+1)).iloc[:n]
    t = time.perf_counter()
    FineGrainedData(items, data.root, valid=0).duplicates(progress=False)
    yield dict(what=f'{n:,} files of CUB (2,889 read again and again)', seconds=time.perf_counter()-t)
    bits = np.random.default_rng(0).choice(np.float32([-1,1]), (100_000,256))
    t = time.perf_counter()
    for _ in _near(bits, bits, 48): pass
    yield dict(what='all pairs of 100,000 hashes (needed twice: as they are, mirrored)', seconds=time.perf_counter()-t)
    with tempfile.TemporaryDirectory() as d:
        big = data.items.iloc[:8].assign(path=[f'{d}/{i}.jpg' for i in range(8)])
        for i,fn in enumerate(big.path): data.picture(i).resize((4000,3000)).save(fn, quality=90)
        t = time.perf_counter()
        FineGrainedData(pd.concat([big]*8), d, valid=0).duplicates(progress=False)
        yield dict(what='64 JPEGs of 12 megapixels', seconds=time.perf_counter()-t)

def main():
    data = read_cub(shared('data','cub50'), valid=0)
    FineGrainedData(data.items.iloc[:8], data.root, valid=0).duplicates(progress=False) # imports
    rows = list(quality(data))
    table([{'bits that differ': k, **{str(o['bits']): (f'{o[k]:.0f}' if isinstance(o[k], float) else o[k]) for o in rows}} for k in list(rows[0])[1:]])
    print()
    times = list(speed(data))
    table(times)
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    print(f"{mb:.0f} MB at most; {12_000/times[0]['seconds']:.0f} files of CUB, {64/times[2]['seconds']:.1f} of 12 megapixels a second, on {os.cpu_count()} cores")
    goals(('12,000 images in under 120 s', f"{times[0]['seconds']:.1f} s", times[0]['seconds']<120))

if __name__=='__main__': main()
