"""Pictures a second from files to batches of floats: ours, in its first epoch and in later ones, beside fastai's and torchvision's recipes

    python benchmarks/loading.py                 # the photographs of ../shared
    python benchmarks/loading.py --data my/photos --size 224 --workers 2 --rounds 3

Every round runs all of them in turn, in one process, on the same files. `MB` is what this process and its workers hold (proportional set size; pages of the cache's file are not theirs).
"""
import argparse, numpy as np, os, psutil, shutil, tempfile, time, torch, warnings
from fastai.vision.all import ImageDataLoaders, RandomResizedCrop, Resize, aug_transforms
from fgvc_fast.all import fine_grained_data
from fgvc_fast.data import cache
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2
from _table import goals, shared, table

def held():
    "Megabytes that belong to this process and its workers, anonymous or shared among them"
    me = psutil.Process()
    return sum(o.pss for p in (me, *me.children(recursive=True)) for o in p.memory_maps(grouped=False) if not o.path.startswith('/'))/1e6

def epoch(dl, most=None):
    "(pictures a second, megabytes) of a run through `dl`, of up to `most` pictures, workers' start included"
    start,n,mb,lost = time.perf_counter(),0,0,0
    half = min(most or 1e9, len(dl)*(dl.bs if hasattr(dl, 'bs') else dl.batch_size))/2
    for xb,*_ in dl:
        assert xb.dtype==torch.float32
        n += len(xb)
        if not mb and n>=half:
            t = time.perf_counter()
            mb = held()
            lost = time.perf_counter()-t # while the workers go on, but only as far as their queues reach
        if most and n>=most: break
    return n/(time.perf_counter()-start-lost),mb

class Bound:
    "What no pipeline of bytes can beat: crops that lie ready in a memory-mapped file are copied, and become floats"
    def __init__(self, path, bs, workers):
        self.bs,self.dl = bs,torch.utils.data.DataLoader(np.load(path, 'r'), bs, shuffle=True, num_workers=workers,
            collate_fn=lambda b: torch.from_numpy(np.stack(b)))
    def __len__(self): return len(self.dl)
    def __iter__(self): return ((xb.permute(0,3,1,2).float().div_(255),None) for xb in self.dl)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', help='a folder of class folders, or CUB (default: the shared photographs)')
    p.add_argument('--size', type=int, default=224)
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--rounds', type=int, default=3)
    args = p.parse_args()
    warnings.filterwarnings('ignore')
    data = fine_grained_data(args.data or shared('data', 'cub50', 'CUB_200_2011'))
    data = data._new(data.items.assign(split=np.where(np.arange(len(data))<len(data)-args.bs, 'train', 'valid')))
    root,n = data.path(0).parents[1],len(data)
    kw,tmp = dict(bs=args.bs, num_workers=args.workers),tempfile.mkdtemp()
    print(f'{data}\n{n:,} files, {args.size} px, {args.workers} workers, {os.cpu_count()} cores')
    crops = np.lib.format.open_memmap(f'{tmp}/crops.npy', 'w+', dtype=np.uint8, shape=(n,args.size,args.size,3))
    for i in range(n): crops[i] = i%256
    crops.flush()
    def fastai(**tfms): return lambda: ImageDataLoaders.from_folder(root, valid_pct=.01, **kw, **tfms).train
    def torchvision(tfms, **loader):
        return lambda: torch.utils.data.DataLoader(ImageFolder(root, v2.Compose(tfms), **loader), args.bs, shuffle=True, num_workers=args.workers,
            drop_last=True)
    crop,to_float = [v2.RandomResizedCrop(args.size, antialias=True), v2.RandomHorizontalFlip()],v2.ToDtype(torch.float32, scale=True)
    def cached(folder): return lambda: data.dls(args.size, cache=f'{tmp}/{folder}', **kw).train
    def unchecked():
        cache._mark = lambda entry, kept: int.from_bytes(entry[-4:], 'little') # what stands there is right
        return cached('made')()
    others = {
        'fastai: Resize(460), aug_transforms(min_scale=.75)': (fastai(item_tfms=Resize(460), batch_tfms=aug_transforms(size=args.size, min_scale=.75)), 20*args.bs),
        'fastai: RandomResizedCrop': (fastai(item_tfms=RandomResizedCrop(args.size)), None),
        'torchvision: ImageFolder + v2': (torchvision([*crop, v2.ToImage(), to_float]), None)}
    ours = {
        'torchvision, loader=decode_image (nobody\'s default)': (torchvision([*crop, to_float], loader=lambda o: decode_image(o, mode='RGB')), None),
        'fgvc_fast: first epoch': (cached('new'), None),
        'fgvc_fast: later epochs': (cached('made'), None),
        'fgvc_fast: later epochs, bytes not checked': (unchecked, None),
        "fgvc_fast: later epochs, aug='standard'": (lambda: data.dls(args.size, aug='standard', cache=f'{tmp}/made', **kw).train, None),
        'fgvc_fast: cache=False': (lambda: data.dls(args.size, cache=False, **kw).train, None),
        'bound: raw copy of crops': (lambda: Bound(f'{tmp}/crops.npy', args.bs, args.workers), None)}
    for _ in cached('made')(): pass
    res,mark = {k: [] for k in (*others, *ours)},cache._mark
    for _ in range(args.rounds):
        shutil.rmtree(f'{tmp}/new', ignore_errors=True)
        for k,(make,most) in (*others.items(), *ours.items()):
            res[k].append(epoch(make(), most))
            cache._mark = mark
    speed = {k: np.array(v)[:,0] for k,v in res.items()}
    best = np.max([speed[k] for k in others], axis=0) # round by round
    slow = speed[next(iter(others))]
    table([{'': k, 'pictures/s': f'{np.median(v):.0f}', 'min–max': f'{v.min():.0f}–{v.max():.0f}', '× presizing': f'{np.median(v/slow):.1f}', '× best other': f'{np.median(v/best):.2f}', 'MB': f'{np.median(np.array(res[k])[:,1]):.0f}'} for k,v in speed.items()])
    shutil.rmtree(tmp)
    free = speed['fgvc_fast: later epochs, bytes not checked']
    later,first,tensors = speed['fgvc_fast: later epochs'],speed['fgvc_fast: first epoch'],speed[next(iter(ours))]
    print(f'beside torchvision with loader=decode_image: later epochs {np.median(later/tensors):.2f} ×, first epoch {np.median(first/tensors):.2f} ×')
    goals(('later epochs at least 10 × the presizing recipe', f'{np.median(later/slow):.1f} ×', np.median(later/slow)>=10),
        ('later epochs at least 3 × the best of the others', f'{np.median(later/best):.2f} ×', np.median(later/best)>=3),
        ('to check every byte takes no more than 5 % of a later epoch', f'{np.median(1-later/free):.1%}', np.median(1-later/free)<=.05),
        ('first epoch no slower than the best of the others', f'{np.median(first/best):.2f} ×', np.median(first/best)>=1))

if __name__=='__main__': main()
